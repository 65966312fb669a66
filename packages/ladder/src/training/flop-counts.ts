import type { Device } from "@sidenet/tensor";

/** Parts of a training step. Recomputation under gradient checkpointing counts as backward. */
export type Phase = "forward" | "backward" | "update";

/** Floating-point operations of one op, by part of the step. */
export type PhaseFlops = Readonly<Record<Phase, number>>;

/** Floating-point operations of a step, by op and part of the step. */
export type FlopsByOp = Readonly<Record<string, PhaseFlops>>;

/** Counts floating-point operations by op and part of a training step, from the counters of a device. */
export class FlopCounts {
  readonly #device: Device;
  readonly #counts = new Map<string, Record<Phase, number>>();

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
        const counts = this.#counts.get(op) ?? { forward: 0, backward: 0, update: 0 };
        counts[phase] += flops - (before.get(op) ?? 0);
        this.#counts.set(op, counts);
      }
    }
  }

  /** All counts so far, without ops that have none. */
  get byOp(): FlopsByOp {
    const used = [...this.#counts].filter(([, counts]) => Object.values(counts).some((flops) => flops > 0));
    return Object.fromEntries(used.map(([op, counts]) => [op, { ...counts }]));
  }
}
