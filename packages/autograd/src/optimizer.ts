import type { Tensor } from "@sidenet/tensor";
import type { Gradients } from "./backward.ts";

/** Options of one step of an optimizer. */
export interface OptimizerStep {
  /** Learning rate of this step. */
  readonly lr: number;
  /** A scalar on the device that multiplies every gradient, such as the `factor` of `clipGlobalNorm`. */
  readonly gradScale?: Tensor | null;
}

/** The state that a checkpoint stores: the number of steps done, and tensors (f32 or u8) by name, such as the moments of AdamW. */
export interface OptimizerState {
  readonly step: number;
  readonly tensors: ReadonlyMap<string, Tensor>;
}

/** Updates parameters in place from their gradients: `AdamW`, or an optimizer of your own. */
export interface Optimizer {
  /** Steps done so far. Set it after overwriting the tensors of `exportState` with those of a checkpoint. */
  stepsDone: number;
  /** Updates every parameter. The gradients belong to the caller, whose scope frees the intermediate tensors. */
  step(gradients: Gradients, options: OptimizerStep): void;
  /** The live state, not a copy. */
  exportState(): OptimizerState;
  /** Frees the state; the parameters stay. */
  dispose(): void;
}
