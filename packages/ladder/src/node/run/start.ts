/** Where a run starts: anew, or from its last whole checkpoint. */

import { SidenetError } from "@sidenet/tensor";
import { deviceName } from "../../device-name.ts";
import { evaluateLosses } from "../../training/evaluate-loss.ts";
import { defaultLearningRate } from "../../training/method-defaults.ts";
import { newRunState, type RunState } from "../../training/run-state.ts";
import { readBackboneSetup } from "../adapter-files.ts";
import { packageVersion } from "../version.ts";
import { Checkpoints } from "./checkpoints.ts";
import { clearRunFolder, type RunFile, writeRunFile } from "./run-folder.ts";
import { type RunParts, sample } from "./run-parts.ts";

/** Ends a run that was asked to stop before there is anything to keep. */
function stopIfAsked({ signal }: RunParts): void {
  if (!signal?.aborted) return;
  throw new SidenetError(
    "L-STOPPED",
    "stopped before the first step: nothing was trained, and nothing was changed.",
  );
}

/** Starts a new run: evaluates before the first step and writes `run.json`. Throws `L-STOPPED`. */
export async function begin(parts: RunParts): Promise<RunState> {
  const { options, run, trainer, evalBatches } = parts;
  const { decoder, adapter } = trainer;
  const device = deviceName(decoder.device);
  stopIfAsked(parts);
  const [frozenEvalLoss, initialEvalLoss] = await evaluateLosses(
    decoder,
    [null, adapter],
    evalBatches,
    options.memory,
  );
  stopIfAsked(parts);
  const before = await sample(parts, null);
  stopIfAsked(parts);
  const start = { trainRecords: run.trainRecords, frozenEvalLoss, initialEvalLoss, sample: before };
  await clearRunFolder(options.outputDir);
  await writeRunFile(options.outputDir, {
    version: 1,
    settings: options.settings ?? {},
    sidenet: packageVersion(),
    device,
    model: run.modelName,
    started: new Date().toISOString(),
    defaults: {
      "learning-rate": defaultLearningRate(options.method, decoder.config),
      "max-length": run.maxLength,
    },
  });
  return newRunState(start, device, { window: 0, batch: 0 });
}

/** Goes back to the last whole checkpoint; null where the run ended before its first. Throws `L-CHECKPOINT`, `L-RESUME`. */
export async function restore(parts: RunParts, earlier: RunFile): Promise<RunState | null> {
  const { trainer, events, run, options } = parts;
  const checkpoints = parts.checkpoints ?? new Checkpoints(options.outputDir, options.keep ?? 2);
  const restored = await checkpoints.restoreLatest(trainer);
  for (const message of restored?.damaged ?? []) events.onNote?.(`${message} It is skipped.`);
  if (!restored) {
    events.onNote?.("the run has no checkpoint yet: it starts from the beginning");
    return null;
  }
  const { state, path } = restored;
  if (state.start.trainRecords !== run.trainRecords) {
    throw new SidenetError(
      "L-RESUME",
      `${path} was made with ${state.start.trainRecords} records to train on, now there are ${run.trainRecords}. Give the ` +
        "data of the first run, or start anew with --overwrite.",
    );
  }
  const { prefixIds = [] } = await readBackboneSetup(options.outputDir);
  if (prefixIds.join() !== trainer.decoder.prefixIds.join()) {
    throw new SidenetError(
      "L-RESUME",
      `${path} was trained after another prefix than that of now (${prefixIds.length} tokens, now ` +
        `${trainer.decoder.prefixIds.length}). Give the first run's text to --prefix, or start anew with --overwrite.`,
    );
  }
  events.onNote?.(`continuing from ${path}`);
  const device = deviceName(trainer.decoder.device);
  if (state.device !== device) {
    events.onNote?.(
      `it was computed on ${state.device}: another device rounds differently, so losses may differ slightly`,
    );
  }
  const { settings = earlier.settings } = options;
  await writeRunFile(options.outputDir, { ...earlier, settings, device });
  const best = state.best && (await checkpoints.list("best")).some(({ step }) => step === state.best?.step);
  return { ...state, best: best ? state.best : null, device };
}
