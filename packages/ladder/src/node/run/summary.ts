import type { BytesByCategory } from "@sidenet/tensor";
import type { Sample } from "../../training/metrics.ts";
import type { StopReason } from "../../training/training-loop.ts";

/** The object of `sidenet train --json` (docs/training.md). */
export interface TrainSummary {
  readonly method: string;
  readonly device: string;
  readonly trainable_parameters: number;
  readonly effective_depth: number;
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: BytesByCategory;
  readonly flops: number;
  readonly tokens: number;
  /** By step; null where it was not finite and the step skipped. */
  readonly loss: readonly (number | null)[];
  /** These are null where nothing is held out. */
  readonly frozen_eval_loss: number | null;
  readonly initial_eval_loss: number | null;
  /** Of the adapter that was written; null, too, where the run was asked to stop and did not evaluate. */
  readonly eval_loss: number | null;
  /** Steps after which the adapter was as it was written: the best evaluation's, or all. */
  readonly adapter_step: number;
  readonly tokens_per_second: number;
  readonly seconds: number;
  readonly steps: number;
  readonly stopped_early: boolean;
  readonly stop_reason: StopReason;
  /** The step that an earlier process had reached; null: a new run. */
  readonly resumed_from: number | null;
  readonly model: string;
  /** Tokens of the prefix before every record; 0: none. */
  readonly prefix_tokens: number;
  readonly adapter: string;
  readonly samples: { readonly before: Sample; readonly after: Sample } | null;
}
