/** One fine-tuning run from files to files: everything `sidenet train` does, with its terminal left out. */
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import { type Device, SidenetError } from "@sidenet/tensor";
import { BatchStream, dataPositionSchema } from "../data/batch-stream.ts";
import { inBatches } from "../data/batches.ts";
import type { TokenRecord } from "../data/records.ts";
import { effectiveDepth } from "../methods/adapter.ts";
import { initializeAdapter } from "../methods/method.ts";
import { parameterCount } from "../model/block.ts";
import { decoderParameters } from "../model/decoder.ts";
import { refusePacked } from "../model/prefix.ts";
import { defaultLearningRate } from "../training/method-defaults.ts";
import { isEvaluation, type MetricsLine, type StepMetrics } from "../training/metrics.ts";
import type { RunState } from "../training/run-state.ts";
import { Trainer } from "../training/trainer.ts";
import { type RunCheckpoints, TrainingLoop } from "../training/training-loop.ts";
import { writeTimeline } from "./memory-timeline.ts";
import { checkOutputFile } from "./output-folder.ts";
import { Checkpoints } from "./run/checkpoints.ts";
import { forgetEnd, recordFailure } from "./run/failure.ts";
import { finish, keepBest, writeAdapter } from "./run/finish.ts";
import { type LoadedRun, loadRun } from "./run/load.ts";
import { MetricsLog, readMetrics } from "./run/metrics-log.ts";
import { withResumeHint } from "./run/resume-hint.ts";
import { openRunFolder, RUN_FILES, type RunFile, writeRunFile } from "./run/run-folder.ts";
import { lockRunFolder } from "./run/run-lock.ts";
import {
  heldOutLosses,
  type RunParts,
  type RunRequest,
  sample,
  type TrainRunEvents,
} from "./run/run-parts.ts";
import { begin, restore } from "./run/start.ts";
import type { TrainSummary } from "./run/summary.ts";
import type { TrainRunOptions } from "./run/train-run-options.ts";

export type { EvalMetrics, Sample, StepMetrics } from "../training/metrics.ts";
export type { RunFailure } from "./run/failure.ts";
export type { RunReady, RunStart, TrainRunEvents } from "./run/run-parts.ts";
export type { TrainSummary } from "./run/summary.ts";
export type { TrainRunOptions } from "./run/train-run-options.ts";

const CALIBRATION_RECORDS = 16;

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
  // Mistakes are reported before anything is read.
  scheduleOf(options, 1);
  if (options.prefix != null && options.packLength != null) throw refusePacked();
  if (options.evalEvery != null && options.heldOut === 0 && !options.evalData?.length) {
    const text =
      "--eval-every evaluates on held-out records, and --held-out 0 keeps none. Leave one of them out.";
    throw new SidenetError("L-OPTION", text);
  }
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

/** `earlier`: the run to resume. */
async function runLoaded(
  run: LoadedRun,
  earlier: RunFile | null,
  request: RunRequest,
): Promise<TrainSummary> {
  const { options, events } = request;
  using decoder = run.decoder;
  const samples = await calibrationRecords(run, options);
  using adapter = await initializeAdapter(options.method, decoder, run.modelName, () =>
    inBatches(samples, 1, run.maxLength),
  );
  using trainer = new Trainer(decoder, adapter, {
    ...options.memory,
    learningRate: scheduleOf(options, defaultLearningRate(options.method, decoder.config)),
    weightDecay: options.weightDecay,
    maxGradNorm: options.maxGradNorm,
  });
  const rows = Math.min(options.batchSize, options.memory.microBatchSize ?? options.batchSize);
  // Records of similar lengths go together, which needs less padding.
  const byLength = [...run.heldOut].sort((a, b) => a.inputIds.length - b.inputIds.length);
  const parts: RunParts = {
    ...request,
    run,
    trainer,
    checkpoints: options.saveEvery == null ? null : new Checkpoints(options.outputDir, options.keep ?? 2),
    evalBatches: inBatches(byLength, rows, run.maxLength),
  };
  events.onReady?.({
    trainableParameters: adapter.parameters.count,
    effectiveDepth: effectiveDepth(adapter, decoder.config),
    backboneParameters: parameterCount(decoderParameters(decoder.config)), // not the bytes that NF4 makes of them
    trainRecords: run.trainRecords,
    heldOutRecords: run.heldOut.length,
    prefixTokens: decoder.prefixIds.length,
  });
  const resumed = earlier ? await restore(parts) : null;
  const state = resumed ?? (await begin(parts));
  events.onStart?.({
    frozenEvalLoss: state.start.frozenEvalLoss,
    initialEvalLoss: state.start.initialEvalLoss,
    resumedFrom: resumed?.counters.step ?? null,
  });
  if (state.start.sample) events.onSample?.("before", state.start.sample);
  return await train(parts, state, resumed && earlier);
}

/** The first training records; each is a sample of the gradient for itself. */
async function calibrationRecords(
  { train }: LoadedRun,
  { calibration = CALIBRATION_RECORDS }: TrainRunOptions,
): Promise<TokenRecord[]> {
  const count = Math.min(calibration, train.length);
  return Promise.all(Array.from({ length: count }, (_, i) => train.get(i)));
}

/** The metrics of an earlier process up to where the run resumes; evaluations that count no more are left out. */
async function keptMetrics(path: string, { counters, evaluation }: RunState): Promise<MetricsLine[]> {
  const lines = await readMetrics(path);
  return lines.filter((line) =>
    isEvaluation(line) ? line.step <= (evaluation.step ?? -1) : line.step < counters.step,
  );
}

/** The training records from where the run is, in rows of its sizes. */
function streamOf({ run, options }: RunParts, state: RunState): BatchStream {
  const { batchSize, seed, packLength = null, bucketByLength = false } = options;
  const { maxLength } = run;
  const stream = new BatchStream(run.train, { batchSize, seed, packLength, bucketByLength, maxLength });
  stream.seek(dataPositionSchema.parse(state.data));
  return stream;
}

/** Checkpoints that come with an adapter: whenever a run is killed, its folder's adapter is no older than its last checkpoint. */
function checkpointsWithAdapter(parts: RunParts): RunCheckpoints | null {
  const { checkpoints } = parts;
  if (!checkpoints) return null;
  return {
    async save(trainer, state) {
      await writeAdapter(parts);
      await checkpoints.save(trainer, state);
    },
    saveBest: (trainer, state) => checkpoints.saveBest(trainer, state),
  };
}

/** Writes that an earlier run goes on with the settings of now, once its next batch has been read with them. */
async function continueRun({ options }: RunParts, earlier: RunFile, state: RunState, stream: BatchStream) {
  const { position } = stream;
  await stream.next();
  stream.seek(position);
  const { settings = earlier.settings } = options;
  await writeRunFile(options.outputDir, { ...earlier, settings, device: state.device });
  await forgetEnd(options.outputDir);
}

/** Runs the loop from a state on, and writes how it ended. `earlier`: the run that is resumed. */
async function train(parts: RunParts, state: RunState, earlier: RunFile | null): Promise<TrainSummary> {
  const { options, events, trainer } = parts;
  const { decoder, adapter } = trainer;
  const { step } = state.counters;
  const metricsPath = join(options.outputDir, RUN_FILES.metrics);
  const stream = streamOf(parts, state);
  if (earlier) await continueRun(parts, earlier, state, stream);
  const kept = earlier ? await keptMetrics(metricsPath, state) : [];
  const steps = kept.flatMap((line) => (isEvaluation(line) ? [] : [line]));
  const losses = steps.map(({ loss }) => loss);
  const evaluate = async () => {
    const [loss] = await heldOutLosses(parts, [adapter]);
    return { loss: loss!, sample: await sample(parts, adapter) };
  };
  const onStep = (line: StepMetrics) => {
    losses.push(line.loss);
    events.onStep?.(line);
  };
  const log = await MetricsLog.open(metricsPath, kept);
  decoder.device.memory.resetPeak();
  const timeline = options.memoryTimeline ?? null;
  const loop = new TrainingLoop(
    {
      ...parts,
      checkpoints: checkpointsWithAdapter(parts),
      stream,
      log,
      evaluate,
      events: { ...events, onStep },
      writeTimeline: timeline === null ? null : (samples) => writeTimeline(timeline, samples),
    },
    state,
    earlier !== null,
  );
  try {
    const reason = await loop.run();
    if (timeline !== null && loop.state.counters.step - step < 2)
      events.onNote?.(`no ${timeline}: it records the second step, and the run had fewer than two`);
    return await finish(parts, loop, reason, { losses, earlier: steps, resumedFrom: earlier && step });
  } catch (error) {
    const { profile, savedStep, state: reached } = loop;
    const done = reached.counters.step;
    const ending = await keepBest(withResumeHint(error, done, savedStep), parts, reached);
    const failure = await recordFailure(options.outputDir, ending, done, profile);
    events.onFailure?.(failure);
    throw ending;
  } finally {
    await log.close();
  }
}
