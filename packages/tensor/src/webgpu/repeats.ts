import type { Device } from "../device.ts";
import { SidenetError } from "../errors.ts";
import type { RepeatCall } from "../repeat-call.ts";
import type { Tensor } from "../tensor.ts";
import type { CommandStream } from "./command-stream.ts";
import {
  type Handle,
  isInPlace,
  isSame,
  type RecordedOutput,
  Recorder,
  type Recording,
} from "./recording.ts";

/** Commands that are kept for an owner: some 40 MB of the host's memory. */
const COMMAND_LIMIT = 100_000;

/** What `Repeats` needs of a device beside its public part. */
interface Internals {
  readonly stream: CommandStream;
  /** Takes free memory out of its pool; false where it is not free. */
  readonly take: (handle: Handle) => boolean;
  readonly release: (handle: Handle) => void;
  /** A tensor over memory taken before. */
  readonly place: (output: RecordedOutput) => Tensor;
  readonly countFlops: (op: string, flops: number) => void;
}

type Outputs<K> = ReadonlyMap<K, Tensor>;

interface Known {
  readonly recording: Recording;
  /** Whether two runs issued these commands. */
  readonly isProven: boolean;
}

/** By key, in the order of their last use; null: run once, and not recorded yet, since a shape may come only once. */
type KnownByKey = Map<string, Known | null>;

/** `Device.repeat` on a GPU: keeps what runs issued, by owner and key, and issues it again. */
export class Repeats {
  readonly #device: Device;
  readonly #internals: Internals;
  readonly #byOwner = new WeakMap<object, KnownByKey>();
  /** Listens while a body runs whose commands may be issued again. */
  recorder: Recorder | null = null;

  constructor(device: Device, internals: Internals) {
    this.#device = device;
    this.#internals = internals;
  }

  /** The outputs of `run`, or of the commands that it issued before. */
  run<K>({ owner, key, inputs }: RepeatCall, run: () => Outputs<K>): Outputs<K> {
    if (this.recorder) return run(); // within another body: a part of its commands
    const all: KnownByKey = this.#byOwner.get(owner) ?? new Map();
    this.#byOwner.set(owner, all);
    const known = all.get(key);
    if (known === undefined) {
      const outputs = run();
      put(all, key, null);
      return outputs;
    }
    const repeated = known?.isProven ? this.#issue<K>(known.recording, inputs) : null;
    if (repeated) {
      put(all, key, known);
      return repeated;
    }
    const { outputs, recording } = this.#record(inputs, run);
    const isProven = recording !== null && known !== null && isSame(known.recording, recording);
    put(all, key, recording && { recording, isProven });
    return outputs;
  }

  #record<K>(
    inputs: readonly Tensor[],
    run: () => Outputs<K>,
  ): { outputs: Outputs<K>; recording: Recording | null } {
    const { memory, flopsByOp } = this.#device;
    const { stream } = this.#internals;
    const recorder = new Recorder(inputs);
    const flopsBefore = new Map(flopsByOp);
    const bytesBefore = memory.liveBytes;
    memory.takeHighest();
    this.recorder = recorder;
    stream.log = recorder.commands;
    let outputs: Outputs<K>;
    try {
      outputs = run();
    } finally {
      this.recorder = null;
      stream.log = null;
    }
    const flops = new Map([...flopsByOp].map(([op, count]) => [op, count - (flopsBefore.get(op) ?? 0)]));
    const extraBytes = memory.takeHighest().bytes - bytesBefore;
    return { outputs, recording: recorder.finish(outputs, { flops, extraBytes }) };
  }

  /** Issues the commands and returns the outputs; null, and nothing is done, where their memory is another's now. */
  #issue<K>(recording: Recording, inputs: readonly Tensor[]): Outputs<K> | null {
    const { commands, taken, outputs, flops, extraBytes } = recording;
    const { stream, take, release, place, countFlops } = this.#internals;
    // A run that would be a new peak is for the account to see.
    const { liveBytes, peakBytes, limitBytes } = this.#device.memory;
    if (liveBytes + extraBytes > Math.min(peakBytes, limitBytes)) return null;
    if (!isInPlace(recording, inputs)) return null;
    const held: Handle[] = [];
    const isFree = [...taken].every((handle) => take(handle) && held.push(handle));
    if (isFree) for (const command of commands) stream.issue(command);
    for (const handle of held) release(handle);
    if (!isFree) return null;
    for (const [op, count] of flops) countFlops(op, count);
    for (const [i, { isFreed }] of recording.inputs.entries()) if (isFreed) inputs[i].dispose("repeat");
    const placed = [...outputs].map(([name, output]): [K, Tensor] => {
      if (!take(output.handle)) throw refuseOutput(output);
      return [name as K, place(output)];
    });
    return new Map(placed);
  }
}

const refuseOutput = ({ label }: RecordedOutput): SidenetError =>
  new SidenetError(
    "T-USE-AFTER-FREE",
    `repeat: the memory for ${label} was an input's, and is gone or in use. Open another device if it ran out of memory before.`,
  );

const commandsOf = (known: Known | null): number => known?.recording.commands.length ?? 1;

/** Puts an entry to the end, and forgets the longest unused ones beyond the limit. */
export function put(all: KnownByKey, key: string, known: Known | null, limit = COMMAND_LIMIT): void {
  all.delete(key);
  all.set(key, known);
  let count = [...all.values()].reduce((sum, one) => sum + commandsOf(one), 0);
  for (const [oldest, one] of all) {
    if (count <= limit || oldest === key) return;
    count -= commandsOf(one);
    all.delete(oldest);
  }
}
