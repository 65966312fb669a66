export { AdamW, type AdamWOptions } from "./adamw.ts";
export type { Gradients } from "./backward.ts";
export { checkpoint, type Recomputed } from "./checkpoint.ts";
export { type CustomGradient, customGradient } from "./custom-gradient.ts";
export {
  type Differentiable,
  type GradcheckedInput,
  type GradcheckInput,
  type GradcheckOptions,
  type GradcheckReport,
  gradcheck,
} from "./gradcheck.ts";
export { accumulateGradients, clipGlobalNorm, disposeGradients } from "./gradients.ts";
export type { Optimizer, OptimizerState, OptimizerStep } from "./optimizer.ts";
export type { ForwardResult } from "./recorded-function.ts";
export {
  type GradRow,
  type InputRule,
  type JointRule,
  type NoGradient,
  type Pull,
  type PullContext,
  type PullRow,
  type WithGradient,
  withGradient,
} from "./rules/grad-row.ts";
export { gradTable } from "./rules/index.ts";
export { unbroadcast } from "./rules/shared.ts";
export type { SavedFormat, SavedFormats } from "./saved-tensors.ts";
export { makeSchedule, type Schedule, type ScheduleOptions } from "./schedule.ts";
export {
  type BackwardOptions,
  Tape,
  type TapeOptions,
  type TapeRecord,
  type Trainable,
} from "./tape.ts";
