/** Metrics of a run: a line for each step and each evaluation (docs/training.md). */
import type { BytesByCategory } from "@sidenet/tensor";

/** A prompt and the model's continuation. */
export interface Sample {
  readonly prompt: string;
  readonly text: string;
}

/** A line for a step. */
export interface StepMetrics {
  /** Counted from 0. */
  readonly step: number;
  /** Before the step's update; null where it was not finite. */
  readonly loss: number | null;
  /** Before clipping; null where it was not finite. */
  readonly grad_norm: number | null;
  readonly learning_rate: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
  readonly live_bytes: number;
  /** The peak since this process's first step. */
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: BytesByCategory;
  /** The step updated nothing, since its loss or gradient norm was not finite. */
  readonly skipped?: true;
}

/** A line for an evaluation after `step` steps. */
export interface EvalMetrics {
  readonly step: number;
  readonly eval_loss: number;
  readonly sample?: Sample;
}

/** A line of `metrics.jsonl`. */
export type MetricsLine = StepMetrics | EvalMetrics;

export const isEvaluation = (line: MetricsLine): line is EvalMetrics => "eval_loss" in line;
