/**
 * What one run of a function of tensors issued to the GPU, so that it can be issued again without the function (`Device.repeat`).
 * The commands name buffers, so they mean the same only while each of these has the role that it had.
 */
import type { Category } from "../memory.ts";
import { type Shape, sameShape } from "../shape.ts";
import type { Storage, Tensor } from "../tensor.ts";
import type { PooledBuffer, PooledTexture } from "./buffer-pool.ts";
import type { Command } from "./command-stream.ts";

/** The memory of a storage. */
export type Handle = PooledBuffer | PooledTexture;

/** A tensor that the function returned. */
export interface RecordedOutput {
  readonly shape: Shape;
  readonly dtype: Tensor["dtype"];
  readonly label: string;
  readonly category: Category;
  readonly handle: Handle;
}

/** The memory of an input at the beginning. */
interface InputMemory {
  readonly handle: Handle;
  /** Tensors that shared it: only the last of them frees it. */
  readonly references: number;
}

interface RecordedInput extends InputMemory {
  readonly shape: Shape;
  readonly dtype: Tensor["dtype"];
  readonly offset: number;
  /** Whether the run freed it. */
  readonly isFreed: boolean;
}

/** A finished run. */
export interface Recording {
  readonly commands: readonly Command[];
  readonly inputs: readonly RecordedInput[];
  /** Memory that it took from the pools; that of the outputs is among it. */
  readonly taken: ReadonlySet<Handle>;
  /** Tensors that lived before and after it, such as weights. */
  readonly others: ReadonlyMap<Storage, Handle>;
  readonly outputs: ReadonlyMap<unknown, RecordedOutput>;
  readonly flops: ReadonlyMap<string, number>;
  /** Highest number of live bytes, less those at the beginning. */
  readonly extraBytes: number;
}

/** Listens to a run. */
export class Recorder {
  /** Commands in their order; the stream adds them. */
  readonly commands: Command[] = [];
  readonly #inputs: readonly Tensor[];
  readonly #before: readonly (InputMemory & { readonly version: number })[];
  readonly #inputHandles: ReadonlySet<Handle>;
  readonly #taken = new Set<Handle>();
  /** Storages made by the run that still live. */
  readonly #live = new Set<Storage>();
  readonly #others = new Map<Storage, { readonly handle: Handle; readonly version: number }>();

  constructor(inputs: readonly Tensor[]) {
    this.#inputs = inputs;
    this.#before = inputs.map(({ storage: { handle, references, version } }) => ({
      handle: handle as Handle,
      references,
      version,
    }));
    this.#inputHandles = new Set(this.#before.map(({ handle }) => handle));
  }

  /** A storage was given memory. */
  took(storage: Storage, handle: Handle): void {
    this.#live.add(storage);
    if (!this.#inputHandles.has(handle)) this.#taken.add(handle);
  }

  /** A storage was freed. */
  freed(storage: Storage): void {
    this.#live.delete(storage);
  }

  /** A command uses these tensors. */
  usesAll(bind: Readonly<Record<string, Tensor | null>>): void {
    for (const name in bind) if (bind[name]) this.uses(bind[name]);
  }

  /** A command uses a tensor. */
  uses({ storage }: Tensor): void {
    const handle = storage.handle as Handle;
    if (this.#live.has(storage) || this.#inputHandles.has(handle) || this.#others.has(storage)) return;
    this.#others.set(storage, { handle, version: storage.version });
  }

  /** The recording of a run that returned `outputs`; null where issuing its commands again would not be all that it did. */
  finish(
    outputs: ReadonlyMap<unknown, Tensor>,
    counts: Pick<Recording, "flops" | "extraBytes">,
  ): Recording | null {
    const returned = new Set([...outputs.values()].map(({ storage }) => storage));
    const isWhole = [...outputs.values()].every(
      ({ storage }) => this.#live.has(storage) && storage.references === 1,
    );
    const isPure = [...this.#others].every(([storage, { version }]) => storage.version === version);
    const freed = [...new Set(this.#inputs.filter((tensor) => tensor.disposed))];
    const isKept = this.#inputs.every(({ storage }, i) => {
      const { references, version } = this.#before[i];
      const freedHere = freed.filter((tensor) => tensor.storage === storage).length;
      return storage.version === version && storage.references === references - freedHere;
    });
    const isAll = this.#live.size === returned.size && returned.size === outputs.size;
    if (!isWhole || !isPure || !isKept || !isAll) return null;
    const describe = ({ shape, dtype, storage }: Tensor): RecordedOutput => ({
      shape,
      dtype,
      label: storage.label,
      category: storage.category,
      handle: storage.handle as Handle,
    });
    return {
      commands: this.commands,
      inputs: this.#inputs.map(({ shape, dtype, offset, disposed }, i) => ({
        ...this.#before[i],
        shape,
        dtype,
        offset,
        isFreed: disposed,
      })),
      taken: this.#taken,
      others: new Map([...this.#others].map(([storage, { handle }]) => [storage, handle])),
      outputs: new Map([...outputs].map(([key, tensor]) => [key, describe(tensor)])),
      ...counts,
    };
  }
}

/** Whether inputs and other tensors have the memory that they had, and the inputs their shapes and as many that share it. */
export function isInPlace({ inputs, others }: Recording, given: readonly Tensor[]): boolean {
  if (given.length !== inputs.length) return false;
  const isAsBefore = ({ storage, shape, dtype, offset }: Tensor, i: number) =>
    storage.handle === inputs[i].handle &&
    storage.references === inputs[i].references &&
    dtype === inputs[i].dtype &&
    offset === inputs[i].offset &&
    sameShape(shape, inputs[i].shape);
  if (!given.every(isAsBefore)) return false;
  for (const [storage, handle] of others) if (storage.handle !== handle) return false;
  return true;
}

/** Whether two runs issued the same commands over the same memory. */
export const isSame = ({ commands: a }: Recording, { commands: b }: Recording): boolean =>
  a.length === b.length && a.every((command, i) => sameCommand(command, b[i]));

const sameItems = (a: ArrayLike<unknown>, b: ArrayLike<unknown>): boolean => {
  if (a.length !== b.length) return false;
  for (let i = 0; i < a.length; i++) if (a[i] !== b[i]) return false;
  return true;
};

const sameCommand = (a: Command, b: Command): boolean =>
  sameItems(a.operands, b.operands) && sameItems(a.bytes, b.bytes);
