import type { Device } from "@sidenet/tensor";

/** Parts of a training step. Recomputation under gradient checkpointing counts as backward. */
export type Phase = "forward" | "backward" | "update";
const PHASES: readonly Phase[] = ["forward", "backward", "update"];

/** Floating-point operations of one op, by part of the step. */
export type PhaseFlops = Readonly<Record<Phase, number>>;

/** Floating-point operations of a step, by op and part of the step. */
export type FlopsByOp = Readonly<Record<string, PhaseFlops>>;

/** Counts floating-point operations by op and part of a training step, from the counters of a device. */
export class FlopCounts {
  readonly #device: Device;
  readonly #counts = new Map<string, Record<Phase, number>>();
  /** What was counted in a call of `repeat`, by its key. */
  readonly #byKey = new Map<string, readonly (readonly [op: string, phase: Phase, flops: number])[]>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** Runs `body` and counts its operations under this part. */
  measure<R>(phase: Phase, body: () => R): R {
    const { flopsByOp } = this.#device;
    const before = new Map(flopsByOp);
    try {
      return body();
    } finally {
      for (const [op, flops] of flopsByOp) {
        this.#of(op)[phase] += flops - (before.get(op) ?? 0);
      }
    }
  }

  /**
   * Runs `call`. If it measures nothing, since a device issued again what it did under `key` before, the operations of that time are
   * counted again.
   */
  repeat<R>(key: string, call: () => R): R {
    const before = this.byOp;
    const result = call();
    const done = subtract(this.byOp, before);
    if (done.length > 0) this.#byKey.set(key, done);
    else for (const [op, phase, flops] of this.#byKey.get(key) ?? []) this.#of(op)[phase] += flops;
    return result;
  }

  #of(op: string): Record<Phase, number> {
    const known = this.#counts.get(op);
    if (known) return known;
    const counts = { forward: 0, backward: 0, update: 0 };
    this.#counts.set(op, counts);
    return counts;
  }

  /** All counts so far, without ops that have none. */
  get byOp(): FlopsByOp {
    const used = [...this.#counts].filter(([, counts]) => Object.values(counts).some((flops) => flops > 0));
    return Object.fromEntries(used.map(([op, counts]) => [op, { ...counts }]));
  }
}

/** What was counted between two times. */
function subtract(after: FlopsByOp, before: FlopsByOp): [op: string, phase: Phase, flops: number][] {
  return Object.entries(after).flatMap(([op, counts]) =>
    PHASES.flatMap((phase): [string, Phase, number][] => {
      const flops = counts[phase] - (before[op]?.[phase] ?? 0);
      return flops > 0 ? [[op, phase, flops]] : [];
    }),
  );
}
