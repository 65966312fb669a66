/** Where a run starts: anew, or from its last whole checkpoint. */

import { createHash } from "node:crypto";
import { SidenetError } from "@sidenet/tensor";
import { deviceName } from "../../device-name.ts";
import { isSameLoss } from "../../training/evaluate-loss.ts";
import { defaultLearningRate } from "../../training/method-defaults.ts";
import { newRunState, type RunState } from "../../training/run-state.ts";
import { readBackboneSetup } from "../adapter-files.ts";
import { packageVersion } from "../version.ts";
import { Checkpoints } from "./checkpoints.ts";
import { clearRunFolder, writeRunFile } from "./run-folder.ts";
import { heldOutLosses, type RunParts, sample } from "./run-parts.ts";

/** Ends a run that was asked to stop before there is anything to keep. */
function stopIfAsked({ signal }: RunParts): void {
  if (!signal?.aborted) return;
  throw new SidenetError(
    "L-STOPPED",
    "stopped before the first step: nothing was trained, and nothing was changed.",
  );
}

/** What the losses of the frozen model come from. */
function comparisonOf({ run, options, trainer }: RunParts): string {
  const records = run.heldOut.map(({ inputIds, labels }) => [inputIds, labels]);
  const from = [run.modelName, run.weightFiles, trainer.decoder.config, options.storage, records];
  return createHash("sha256").update(JSON.stringify(from)).digest("hex");
}

/** Starts a new run: evaluates before the first step and writes `run.json`. Throws `L-STOPPED`, `L-DIVERGED`. */
export async function begin(parts: RunParts): Promise<RunState> {
  const { options, run, trainer } = parts;
  const { decoder, adapter } = trainer;
  const device = deviceName(decoder.device);
  stopIfAsked(parts);
  const [frozenEvalLoss, initialEvalLoss] = await heldOutLosses(parts, [null, adapter]);
  stopIfAsked(parts);
  const before = await sample(parts, null);
  stopIfAsked(parts);
  const { mixture } = run;
  const comparison = comparisonOf(parts);
  const start = { mixture, comparison, frozenEvalLoss, initialEvalLoss, sample: before };
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
      "optimizer-state": options.memory.optimizerState ?? "f32",
    },
  });
  return newRunState(start, device, { window: 0, batch: 0 });
}

/** Goes back to the last whole checkpoint; null where the run ended before its first. Throws `L-CHECKPOINT`, `L-RESUME`, `L-DIVERGED`. */
export async function restore(parts: RunParts): Promise<RunState | null> {
  const { trainer, events, run, options } = parts;
  const checkpoints = parts.checkpoints ?? new Checkpoints(options.outputDir, options.keep ?? 2);
  const restored = await checkpoints.restoreLatest(trainer);
  for (const message of restored?.damaged ?? []) events.onNote?.(`${message} It is skipped.`);
  if (!restored) {
    events.onNote?.("the run has no checkpoint yet: it starts from the beginning");
    return null;
  }
  const { state, path } = restored;
  if (state.start.mixture !== run.mixture) {
    throw new SidenetError(
      "L-RESUME",
      `${path} was made with ${state.start.mixture} records to train on (records of a file x their repeats), now there are ` +
        `${run.mixture}. Give --data the files and weights of the first run, or start anew with --overwrite.`,
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
  const best = state.best && (await checkpoints.list("best")).some(({ step }) => step === state.best?.step);
  return await comparable(parts, { ...state, best: best ? state.best : null, device });
}

/** The state with losses that those of this process can be compared with. */
async function comparable(parts: RunParts, state: RunState): Promise<RunState> {
  const comparison = comparisonOf(parts);
  if (state.start.comparison === comparison) return state;
  const [frozenEvalLoss] = await heldOutLosses(parts, [null]);
  const before = state.start.frozenEvalLoss;
  const shown = (loss: number | null) => loss?.toFixed(4) ?? "none";
  if (isSameLoss(before, frozenEvalLoss)) return { ...state, start: { ...state.start, comparison } };
  parts.events.onNote?.(
    `the frozen model's held-out loss was ${shown(before)} and is ${shown(frozenEvalLoss)} with the records or weights of ` +
      "now: earlier evaluations, and the best adapter by them, do not count any more",
  );
  const start = {
    ...state.start,
    comparison,
    frozenEvalLoss,
    initialEvalLoss: frozenEvalLoss, // an untrained adapter changes nothing
    sample: await sample(parts, null),
  };
  return { ...state, start, evaluation: { step: null, withoutGain: 0 }, best: null };
}
