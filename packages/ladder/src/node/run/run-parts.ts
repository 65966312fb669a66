/** What the parts of a run share: the request, what was loaded, and the event handlers. */
import { SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../../methods/adapter.ts";
import type { LabeledBatch } from "../../model/batch-loss.ts";
import { notFinite, SLOWER } from "../../not-finite.ts";
import { evaluateLosses } from "../../training/evaluate-loss.ts";
import type { Sample } from "../../training/metrics.ts";
import type { Trainer } from "../../training/trainer.ts";
import type { LoopEvents } from "../../training/training-loop.ts";
import type { Checkpoints } from "./checkpoints.ts";
import type { RunFailure } from "./failure.ts";
import type { LoadedRun } from "./load.ts";
import { sampleText } from "./sample-text.ts";
import type { TrainRunOptions } from "./train-run-options.ts";

/** Events of a run; every handler is optional. */
export interface TrainRunEvents extends LoopEvents {
  /** Bytes of the model that are read, and all there are. */
  onLoad?(doneBytes: number, totalBytes: number): void;
  /** Model, adapter and data are loaded; a new run is evaluated next. */
  onReady?(ready: RunReady): void;
  /** Before the first step of this process. */
  onStart?(start: RunStart): void;
  /** A held-out record as the model continues it, before and after training. */
  onSample?(when: "before" | "after", sample: Sample): void;
  /** The run failed after it had begun, and `failure.json` is written. The error is thrown afterwards. */
  onFailure?(failure: RunFailure): void;
}

/** What was loaded for a run. */
export interface RunReady {
  readonly trainableParameters: number;
  /** Blocks on the longest way from tokens to logits. */
  readonly effectiveDepth: number;
  readonly backboneParameters: number;
  readonly trainRecords: number;
  readonly heldOutRecords: number;
  /** Tokens of the prefix before every record; 0: none. */
  readonly prefixTokens: number;
}

/** What is known of a run before its first step. */
export interface RunStart {
  /**
   * Held-out loss of the backbone alone, and with the untrained adapter: equal but for rounding, since U = 0, or B = 0. Null where
   * nothing is held out.
   */
  readonly frozenEvalLoss: number | null;
  readonly initialEvalLoss: number | null;
  /** Steps that were done by an earlier process; null: a new run. */
  readonly resumedFrom: number | null;
}

/** What a caller of `trainRun` asked for. */
export interface RunRequest {
  readonly options: TrainRunOptions;
  readonly events: TrainRunEvents;
  readonly signal: AbortSignal | null;
}

/** What the parts of a run share. */
export interface RunParts extends RunRequest {
  readonly run: LoadedRun;
  readonly trainer: Trainer;
  /** Null: none are kept. */
  readonly checkpoints: Checkpoints | null;
  /** Of the held-out records. */
  readonly evalBatches: readonly LabeledBatch[];
}

/** The `L-DIVERGED` of a held-out loss: whoever goes on from the same step meets it again. */
export class HeldOutLossError extends SidenetError {}

/**
 * Held-out losses with adapters, of which null is the frozen model alone; null where nothing is held out. Throws `L-DIVERGED` for
 * one that is not finite.
 */
export async function heldOutLosses(
  { trainer: { decoder }, evalBatches, options }: RunParts,
  adapters: readonly (Adapter | null)[],
): Promise<(number | null)[]> {
  if (evalBatches.length === 0) return adapters.map(() => null);
  const losses = await evaluateLosses(decoder, adapters, evalBatches, options.memory);
  const i = losses.findIndex((loss) => !Number.isFinite(loss));
  if (i < 0) return losses;
  const adapter = adapters[i];
  const what = `the held-out loss ${adapter ? "with the adapter" : "of the frozen model"} is not finite: ${losses[i]}`;
  const cause = await notFinite(what, decoder, adapter, adapter ? SLOWER : undefined);
  throw new HeldOutLossError(cause.code, cause.text);
}

/** A held-out record as the model continues it; null where no samples are wanted, or nothing is held out. */
export async function sample({ run, options }: RunParts, adapter: Adapter | null): Promise<Sample | null> {
  return options.sampleTokens > 0 && run.heldOut.length > 0
    ? sampleText(run, adapter, options.sampleTokens)
    : null;
}
