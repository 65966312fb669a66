/** What a run leaves when it ends: the adapter, and a summary of how it went. */

import { join } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import { deviceName } from "../../device-name.ts";
import { effectiveDepth } from "../../methods/adapter.ts";
import type { StepMetrics } from "../../training/metrics.ts";
import type { RunState } from "../../training/run-state.ts";
import type { StopReason, TrainingLoop } from "../../training/training-loop.ts";
import { saveAdapter } from "../adapter-files.ts";
import { writeJsonFile } from "../json-file.ts";
import { inSteps } from "./resume-hint.ts";
import { RUN_FILES } from "./run-folder.ts";
import { heldOutLosses, type RunParts, sample } from "./run-parts.ts";
import type { TrainSummary } from "./summary.ts";

/** The steps of a run, those of earlier processes included. */
interface RunHistory {
  /** By step; null where it was not finite. */
  readonly losses: readonly (number | null)[];
  /** Lines of earlier processes. */
  readonly earlier: readonly StepMetrics[];
  /** The step that an earlier process had reached; null: a new run. */
  readonly resumedFrom: number | null;
}

/** Peak memory of this process or an earlier one of the run. */
function highestPeak({ memory }: Device, earlier: readonly StepMetrics[]) {
  const own = memory.peak();
  return earlier.reduce(
    (most, line) =>
      line.peak_bytes > most.peakBytes
        ? { peakBytes: line.peak_bytes, byCategory: line.peak_bytes_by_category }
        : most,
    { peakBytes: own.peakBytes, byCategory: own.byCategory },
  );
}

/** Writes the adapter as it is now to the output folder. Throws what `saveAdapter` throws. */
export async function writeAdapter({ options, run, trainer }: RunParts): Promise<void> {
  const { decoder, adapter } = trainer;
  const { config, isQuantized: quantized, prefixIds } = decoder;
  const base = { name: run.modelName, config, quantized, prefixIds };
  await saveAdapter(options.outputDir, adapter, base);
}

/** Writes the final adapter and a summary of the run. */
export async function finish(
  parts: RunParts,
  loop: TrainingLoop,
  reason: StopReason,
  { losses, earlier, resumedFrom }: RunHistory,
): Promise<TrainSummary> {
  const { options, events, trainer, checkpoints } = parts;
  const { decoder, adapter } = trainer;
  const { state } = loop;
  const { step } = state.counters;
  const peak = highestPeak(decoder.device, earlier);
  const best = reason === "signal" || !checkpoints ? null : state.best;
  if (best && best.step !== step) await checkpoints?.restoreBest(trainer, best.step);
  await writeAdapter(parts);
  let evalLoss: number | null = best?.loss ?? null;
  if (evalLoss === null && reason !== "signal") {
    [evalLoss] = await heldOutLosses(parts, [adapter]);
  }
  const after = reason === "signal" ? null : await sample(parts, adapter);
  if (after) events.onSample?.("after", after);
  const summary: TrainSummary = {
    method: options.method.method,
    model: parts.run.modelName,
    prefix_tokens: decoder.prefixIds.length,
    device: deviceName(parts.trainer.decoder.device),
    trainable_parameters: adapter.parameters.count,
    effective_depth: effectiveDepth(adapter, decoder.config),
    peak_bytes: peak.peakBytes,
    peak_bytes_by_category: peak.byCategory,
    flops: state.flops,
    tokens: state.tokens,
    loss: losses,
    tokens_per_second: state.tokens / Math.max(state.seconds, 1e-9),
    seconds: state.seconds,
    steps: step,
    stopped_early: step < options.steps,
    stop_reason: reason,
    resumed_from: resumedFrom,
    frozen_eval_loss: state.start.frozenEvalLoss,
    initial_eval_loss: state.start.initialEvalLoss,
    eval_loss: evalLoss,
    adapter_step: best?.step ?? step,
    adapter: options.outputDir,
    samples: state.start.sample && after ? { before: state.start.sample, after } : null,
  };
  const write = (name: string, value: object) => writeJsonFile(join(options.outputDir, name), value);
  if (loop.profile) await write(RUN_FILES.profile, loop.profile);
  await write(RUN_FILES.summary, summary);
  return summary;
}

/** Writes the best adapter of a run that diverged after it; returns the error, which says so. */
export async function keepBest(error: unknown, parts: RunParts, { best }: RunState): Promise<unknown> {
  const { checkpoints, trainer, options } = parts;
  if (!best || !checkpoints || !(error instanceof SidenetError) || error.code !== "L-DIVERGED") return error;
  const whose = `The best adapter by its held-out loss, that after ${inSteps(best.step)},`;
  let where = `is in ${options.outputDir}.`;
  try {
    await checkpoints.restoreBest(trainer, best.step);
    await writeAdapter(parts);
  } catch (cause) {
    where = `could not be written: ${cause instanceof SidenetError ? cause.text : cause}`;
  }
  return new SidenetError(error.code, `${error.text} ${whose} ${where}`, { cause: error });
}
