import type { Tensor } from "@sidenet/tensor";
import type { Gradients } from "./backward.ts";

/** Options of one step of an optimizer. */
export interface OptimizerStep {
  /** Learning rate of this step. */
  readonly lr: number;
  /** A scalar on the device that multiplies every gradient, such as the `factor` of `clipGlobalNorm`. */
  readonly gradScale?: Tensor | null;
}

/** The contents of a checkpoint: the number of steps done, and tensors such as the moments of AdamW, f32 or u8, by name. */
export interface OptimizerState {
  readonly step: number;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** What updates parameters in place from their gradients: `AdamW`, or an optimizer of one's own. */
export interface Optimizer {
  /** Steps done so far. A resumed run sets it after it has overwritten the tensors of `exportState`. */
  stepsDone: number;
  /** Updates every parameter; the gradients stay the caller's. The caller frees what it leaves in the innermost scope. */
  step(gradients: Gradients, options: OptimizerStep): void;
  /** The live state and not a copy. */
  exportState(): OptimizerState;
  /** Frees the state; the parameters stay. */
  dispose(): void;
}
