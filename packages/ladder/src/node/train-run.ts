/** One fine-tuning run from files to files: everything `sidenet train` does, with its terminal left out. */
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import { type Device, type MemorySample, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../adapter.ts";
import { BatchStream, dataPositionSchema } from "../data/batch-stream.ts";
import { inBatches } from "../data/batches.ts";
import { decoderParameters } from "../decoder.ts";
import { initializeAdapter } from "../method.ts";
import { defaultLearningRate } from "../method-defaults.ts";
import type { TokenRecord } from "../records.ts";
import { isEvaluation, type Sample, type StepMetrics } from "../run/metrics.ts";
import { newRunState, type RunState } from "../run/run-state.ts";
import { type LoopEvents, type StopReason, TrainingLoop } from "../run/training-loop.ts";
import { effectiveDepth, parameterCount } from "../side-config.ts";
import { evaluateLoss, type LabeledBatch, Trainer } from "../trainer.ts";
import { saveAdapter } from "./adapter-files.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { writeTimeline } from "./memory-timeline.ts";
import { checkOutputFile } from "./output-folder.ts";
import { Checkpoints } from "./run/checkpoints.ts";
import { forgetEnd, type RunFailure, recordFailure } from "./run/failure.ts";
import { type LoadedRun, loadRun, sampleText } from "./run/load.ts";
import { MetricsLog, readMetrics } from "./run/metrics-log.ts";
import { clearRunFolder, openRunFolder, type RunFile, writeRunFile } from "./run/run-folder.ts";
import { lockRunFolder } from "./run/run-lock.ts";
import type { TrainSummary } from "./run/summary.ts";
import type { TrainRunOptions } from "./run/train-run-options.ts";
import { withWayOn } from "./run/way-on.ts";
import { packageVersion } from "./version.ts";

export type { TrainRunOptions } from "./run/train-run-options.ts";

const CALIBRATION_RECORDS = 16;

/** What a run tells while it goes. Every call is optional to act on. */
export interface TrainRunEvents extends LoopEvents {
  /** Bytes of the model that are read, and all there are. */
  onLoad?(doneBytes: number, totalBytes: number): void;
  /** Before the first step of this process. */
  onStart?(start: RunStart): void;
  /** A held-back record as the model continues it, before and after training. */
  onSample?(when: "before" | "after", sample: Sample): void;
  /** The run had begun and failed; its folder says so by now. The error is thrown after this. */
  onFailure?(failure: RunFailure): void;
}

/** What is known of a run before its first step. */
export interface RunStart {
  readonly trainableParameters: number;
  /** Blocks on the longest way from tokens to logits. */
  readonly effectiveDepth: number;
  readonly backboneParameters: number;
  readonly trainRecords: number;
  readonly heldOutRecords: number;
  /** Held-back loss of the backbone alone, and with the untrained adapter: equal, since U = 0, or B = 0. */
  readonly frozenEvalLoss: number;
  readonly initialEvalLoss: number;
  /** Steps that were done by an earlier process; null: a new run. */
  readonly resumedFrom: number | null;
}

export type { EvalMetrics, Sample, StepMetrics } from "../run/metrics.ts";
export type { RunFailure } from "./run/failure.ts";
export type { TrainSummary } from "./run/summary.ts";

/**
 * Trains, evaluates, samples, and writes to the output folder: `run.json`, `metrics.jsonl`, checkpoints,
 * `adapter_config.json`, `adapter_model.safetensors` and `summary.json`, or `failure.json` in its place; each file appears
 * whole or not at all. `signal` ends the run before its next step: what was trained by then is saved, and
 * `existing: "resume"` goes on there.
 * Throws `L-RUN-EXISTS`, `L-RUN-BUSY`, what reading, loading, the disk or the device throws, `L-DIVERGED`, and `T-ANOMALY` with
 * `detectAnomaly`, which switches the device's mode on.
 */
export async function trainRun(
  device: Device,
  options: TrainRunOptions,
  events: TrainRunEvents = {},
  signal?: AbortSignal,
): Promise<TrainSummary> {
  scheduleOf(options, 1); // a mistake in it is told before anything is read
  const { existing = "refuse", outputDir } = options;
  if (options.memoryTimeline != null) {
    const data = options.data.map((file) => (typeof file === "string" ? file : file.path));
    await checkOutputFile(options.memoryTimeline, data);
  }
  const unlock = await lockRunFolder(outputDir);
  try {
    const earlier = await openRunFolder(outputDir, existing);
    if (options.detectAnomaly) device.detectAnomaly = true;
    const run = await loadRun(device, options, (done, total) => events.onLoad?.(done, total));
    try {
      return await runLoaded(run, earlier, { options, events, signal: signal ?? null });
    } finally {
      await run.close();
    }
  } finally {
    await unlock();
  }
}

const scheduleOf = (options: TrainRunOptions, defaultRate: number) =>
  makeSchedule({
    kind: options.schedule,
    lr: options.learningRate ?? defaultRate,
    warmupSteps: Math.min(options.warmupSteps, options.steps),
    totalSteps: options.steps,
  });

/** What a caller of `trainRun` asked for. */
interface Request {
  readonly options: TrainRunOptions;
  readonly events: TrainRunEvents;
  readonly signal: AbortSignal | null;
}

/** `earlier`: the run that is to go on. */
async function runLoaded(run: LoadedRun, earlier: RunFile | null, request: Request): Promise<TrainSummary> {
  const { options, events } = request;
  using decoder = run.decoder;
  const samples = await calibrationRecords(run, options);
  using adapter = await initializeAdapter(options.method, decoder, run.modelName, () =>
    inBatches(samples, 1, run.padId, run.maxLength),
  );
  using trainer = new Trainer(decoder, adapter, {
    ...options.memory,
    learningRate: scheduleOf(options, defaultLearningRate(options.method, decoder.config)),
    weightDecay: options.weightDecay,
    maxGradNorm: options.maxGradNorm,
  });
  const parts: RunParts = {
    ...request,
    run,
    trainer,
    checkpoints: options.saveEvery == null ? null : new Checkpoints(options.outputDir, options.keep ?? 2),
    evalBatches: inBatches(run.heldOut, options.batchSize, run.padId, run.maxLength),
  };
  const resumed = earlier ? await restore(parts, earlier) : null;
  const state = resumed ?? (await begin(parts));
  events.onStart?.({
    trainableParameters: adapter.parameters.count,
    effectiveDepth: effectiveDepth(adapter.side?.config ?? null, decoder.config),
    backboneParameters: parameterCount(decoderParameters(decoder.config)), // not the bytes that NF4 makes of them
    trainRecords: run.trainRecords,
    heldOutRecords: run.heldOut.length,
    frozenEvalLoss: state.start.frozenEvalLoss,
    initialEvalLoss: state.start.initialEvalLoss,
    resumedFrom: resumed?.counters.step ?? null,
  });
  if (state.start.sample) events.onSample?.("before", state.start.sample);
  return await train(parts, state, resumed !== null);
}

/** The first training records; each is a sample of the gradient for itself. */
async function calibrationRecords(
  { train }: LoadedRun,
  { calibration = CALIBRATION_RECORDS }: TrainRunOptions,
): Promise<TokenRecord[]> {
  const count = Math.min(calibration, train.length);
  return Promise.all(Array.from({ length: count }, (_, i) => train.get(i)));
}

/** What the parts of a run share. */
interface RunParts extends Request {
  readonly run: LoadedRun;
  readonly trainer: Trainer;
  readonly checkpoints: Checkpoints | null;
  readonly evalBatches: readonly LabeledBatch[];
}

const metricsPath = ({ options }: RunParts): string => join(options.outputDir, "metrics.jsonl");
const deviceName = ({ trainer }: RunParts): string =>
  `${trainer.decoder.device.kind}: ${trainer.decoder.device.label}`;

async function sample({ run, options }: RunParts, adapter: Adapter | null): Promise<Sample | null> {
  return options.sampleTokens > 0 ? sampleText(run, adapter, options.sampleTokens) : null;
}

/** Ends a run that was asked to stop before there is anything to keep. */
function stopIfAsked({ signal }: RunParts): void {
  if (!signal?.aborted) return;
  throw new SidenetError(
    "L-STOPPED",
    "stopped before the first step: nothing was trained, and nothing was changed.",
  );
}

/** A new run: what there is before the first step, and a folder that says so. Throws `L-STOPPED`. */
async function begin(parts: RunParts): Promise<RunState> {
  const { options, run, trainer, evalBatches } = parts;
  const { decoder, adapter } = trainer;
  stopIfAsked(parts);
  const frozenEvalLoss = await evaluateLoss(decoder, null, evalBatches, options.memory);
  stopIfAsked(parts);
  const initialEvalLoss = await evaluateLoss(decoder, adapter, evalBatches, options.memory);
  stopIfAsked(parts);
  const before = await sample(parts, null);
  stopIfAsked(parts);
  const start = { trainRecords: run.trainRecords, frozenEvalLoss, initialEvalLoss, sample: before };
  await clearRunFolder(options.outputDir);
  await writeRunFile(options.outputDir, {
    version: 1,
    settings: options.settings ?? {},
    sidenet: packageVersion(),
    device: deviceName(parts),
    model: run.modelName,
    started: new Date().toISOString(),
  });
  return newRunState(start, deviceName(parts), { window: 0, batch: 0 });
}

/** Goes back to the last whole checkpoint; null where the run ended before its first. Throws `L-CHECKPOINT`, `L-RESUME`. */
async function restore(parts: RunParts, earlier: RunFile): Promise<RunState | null> {
  const { trainer, events, run, options } = parts;
  const checkpoints = parts.checkpoints ?? new Checkpoints(options.outputDir, options.keep ?? 2);
  const restored = await checkpoints.restoreLatest(trainer);
  for (const message of restored?.damaged ?? []) events.onNote?.(`${message} It is left out.`);
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
  events.onNote?.(`going on from ${path}`);
  if (state.device !== deviceName(parts)) {
    events.onNote?.(
      `it was computed on ${state.device}: another device rounds differently, so losses may differ slightly`,
    );
  }
  const { settings = earlier.settings } = options;
  await writeRunFile(options.outputDir, { ...earlier, settings, device: deviceName(parts) });
  const best = state.best && (await checkpoints.list("best")).some(({ step }) => step === state.best?.step);
  return { ...state, best: best ? state.best : null, device: deviceName(parts) };
}

async function train(parts: RunParts, state: RunState, resumed: boolean): Promise<TrainSummary> {
  const { options, events, trainer, run, evalBatches } = parts;
  const { decoder, adapter } = trainer;
  const before = resumed ? await readMetrics(metricsPath(parts)) : [];
  const { step } = state.counters;
  const kept = before.filter((line) => (isEvaluation(line) ? line.step <= step : line.step < step));
  const losses = kept.flatMap((line) => (isEvaluation(line) ? [] : [line.loss]));
  const { batchSize, seed, packLength = null, bucketByLength = false } = options;
  const { padId, maxLength } = run;
  const rows = { batchSize, seed, packLength, bucketByLength, padId, maxLength };
  const stream = new BatchStream(run.train, rows);
  stream.seek(dataPositionSchema.parse(state.data));
  const evaluate = async () => ({
    loss: await evaluateLoss(decoder, adapter, evalBatches, options.memory),
    sample: await sample(parts, adapter),
  });
  const onStep = (line: StepMetrics) => {
    losses.push(line.loss);
    events.onStep?.(line);
  };
  if (resumed) await forgetEnd(options.outputDir);
  const log = await MetricsLog.open(metricsPath(parts), kept);
  decoder.device.memory.resetPeak();
  const timeline = timelineOf(options);
  const loop = new TrainingLoop(
    {
      ...parts,
      stream,
      log,
      evaluate,
      events: { ...events, onStep },
      writeTimeline: timeline?.write ?? null,
    },
    state,
    resumed,
  );
  try {
    const reason = await loop.run();
    timeline?.noteIfMissing(events);
    const earlier = kept.flatMap((line) => (isEvaluation(line) ? [] : [line]));
    return await finish(parts, loop, reason, { losses, earlier, resumedFrom: resumed ? step : null });
  } catch (error) {
    const told = withWayOn(error, loop.savedStep);
    const { profile, state: reached } = loop;
    const failure = await recordFailure(options.outputDir, told, reached.counters.step, profile);
    events.onFailure?.(failure);
    throw told;
  } finally {
    await log.close();
  }
}

/** Where `memoryTimeline` goes; null: nowhere. */
function timelineOf({ memoryTimeline: path }: TrainRunOptions) {
  if (path == null) return null;
  let written = false;
  return {
    async write(samples: readonly MemorySample[]) {
      await writeTimeline(path, samples);
      written = true;
    },
    noteIfMissing(events: TrainRunEvents) {
      if (!written) events.onNote?.(`no ${path}: it is of the second step, which there was none of`);
    },
  };
}

/** What the summary has of steps. */
interface Told {
  readonly losses: readonly (number | null)[];
  /** Those of earlier processes. */
  readonly earlier: readonly StepMetrics[];
  readonly resumedFrom: number | null;
}

/** The most that was live in this process or an earlier one of the run. */
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

/** Writes the adapter that the run has come to, and says what it is worth. */
async function finish(
  parts: RunParts,
  loop: TrainingLoop,
  reason: StopReason,
  { losses, earlier, resumedFrom }: Told,
): Promise<TrainSummary> {
  const { options, events, trainer, run, checkpoints } = parts;
  const { decoder, adapter } = trainer;
  const { state } = loop;
  const { step } = state.counters;
  const peak = highestPeak(decoder.device, earlier);
  const best = reason === "signal" || !checkpoints ? null : state.best;
  if (best && best.step !== step) await checkpoints?.restoreBest(trainer, best.step);
  const base = { name: run.modelName, config: decoder.config, quantized: decoder.isQuantized };
  await saveAdapter(options.outputDir, adapter, base);
  let evalLoss: number | null = best?.loss ?? null;
  if (evalLoss === null && reason !== "signal") {
    evalLoss = await evaluateLoss(decoder, adapter, parts.evalBatches, options.memory);
  }
  const after = reason === "signal" ? null : await sample(parts, adapter);
  if (after) events.onSample?.("after", after);
  const summary: TrainSummary = {
    method: options.method.method,
    model: run.modelName,
    device: deviceName(parts),
    trainable_parameters: adapter.parameters.count,
    effective_depth: effectiveDepth(adapter.side?.config ?? null, decoder.config),
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
  const write = (name: string, value: object) =>
    writeFileAtomic(join(options.outputDir, name), `${JSON.stringify(value, null, 2)}\n`);
  if (loop.profile) await write("profile.json", loop.profile);
  await write("summary.json", summary);
  return summary;
}
