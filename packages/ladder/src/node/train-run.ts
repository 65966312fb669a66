/** One fine-tuning run from files to files: everything `sidenet train` does, with its terminal left out. */
import { mkdir, open } from "node:fs/promises";
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import { type BytesByCategory, type Device, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../adapter.ts";
import type { BaseStorage } from "../base-storage.ts";
import { contextLimit } from "../config.ts";
import { BatchStream, inMemory } from "../data/batch-stream.ts";
import { inBatches } from "../data/batches.ts";
import { Decoder } from "../decoder.ts";
import { generate } from "../generate.ts";
import { loadWeights } from "../load-weights.ts";
import { type MethodOptions, makeAdapter } from "../method.ts";
import { encodeRecord, type FieldMapping, type TextRecord, type TokenRecord } from "../records.ts";
import type { Tokenizer } from "../tokenizer.ts";
import { evaluateLoss, type MemoryOptions, type StepReport, Trainer } from "../trainer.ts";
import { saveAdapter } from "./adapter-files.ts";
import { readRecords } from "./data/record-store.ts";
import { openModel } from "./open-model.ts";

export interface TrainRunOptions {
  readonly model: string;
  readonly data: readonly string[];
  readonly fields: FieldMapping;
  readonly outputDir: string;
  readonly method: MethodOptions;
  readonly storage: Required<BaseStorage>;
  readonly memory: MemoryOptions;
  readonly steps: number;
  readonly batchSize: number;
  /** Tokens a record is cut to; null: longer records than the model's context are refused. */
  readonly maxLength: number | null;
  /** Records held back from the end of the data, never trained on. */
  readonly heldOut: number;
  readonly learningRate: number;
  readonly warmupSteps: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly weightDecay: number;
  readonly maxGradNorm: number;
  /** Order of the data. */
  readonly seed: number;
  /** Tokens of the samples before and after; 0: none. */
  readonly sampleTokens: number;
  /** Name the first op that makes a NaN or an infinity, at a price (`Device.detectAnomaly`). */
  readonly detectAnomaly?: boolean;
}

/** What a run tells while it goes. Every call is optional to act on. */
export interface TrainRunEvents {
  onLoad?(doneBytes: number, totalBytes: number): void;
  onStart?(start: RunStart): void;
  onSample?(when: "before" | "after", sample: Sample): void;
  onStep?(metrics: StepMetrics): void;
}

export interface RunStart {
  readonly trainableParameters: number;
  readonly backboneParameters: number;
  readonly trainRecords: number;
  readonly heldOutRecords: number;
  /** Held-back loss of the backbone alone, and with the untrained adapter: equal, since U = 0, or B = 0. */
  readonly frozenEvalLoss: number;
  readonly initialEvalLoss: number;
}

export interface Sample {
  readonly prompt: string;
  readonly text: string;
}

/** A line of `metrics.jsonl`. */
export interface StepMetrics {
  readonly step: number;
  readonly loss: number;
  readonly grad_norm: number;
  readonly learning_rate: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
  readonly live_bytes: number;
  /** Peak since the first step, and its parts. */
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: BytesByCategory;
}

/** The object of `sidenet train --json` (design.md, "Commands"). */
export interface TrainSummary {
  readonly method: string;
  readonly device: string;
  readonly trainable_parameters: number;
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: BytesByCategory;
  readonly flops: number;
  readonly tokens: number;
  readonly loss: readonly number[];
  readonly frozen_eval_loss: number;
  readonly initial_eval_loss: number;
  readonly eval_loss: number;
  readonly tokens_per_second: number;
  readonly seconds: number;
  readonly steps: number;
  readonly stopped_early: boolean;
  readonly adapter: string;
  readonly samples: { readonly before: Sample; readonly after: Sample } | null;
}

interface LoadedRun {
  readonly decoder: Decoder;
  readonly tokenizer: Tokenizer;
  readonly modelName: string;
  readonly train: readonly TokenRecord[];
  readonly heldOut: readonly TokenRecord[];
  readonly maxLength: number;
}

async function readAll(options: TrainRunOptions): Promise<{ record: TextRecord; source: string }[]> {
  const all: { record: TextRecord; source: string }[] = [];
  for (const path of options.data) for await (const item of readRecords(path, options.fields)) all.push(item);
  if (all.length > options.heldOut && options.heldOut > 0) return all;
  throw new SidenetError(
    "L-DATA",
    `the data has ${all.length} records, and ${options.heldOut} are to be held back. Wanted at least one to hold back and ` +
      "one to train on: give more data or a smaller --held-out.",
  );
}

/** Data first, then the model: a mistake in a file of kilobytes is told before gigabytes are read. */
async function load(device: Device, options: TrainRunOptions, events: TrainRunEvents): Promise<LoadedRun> {
  const records = await readAll(options);
  const model = await openModel(options.model);
  try {
    const { config } = model;
    const tokenizer = await model.tokenizer();
    const context = contextLimit(config);
    const maxLength = Math.min(options.maxLength ?? context, context);
    const encoding = {
      bosId: tokenizer.encode("").includes(tokenizer.bosId ?? -1) ? tokenizer.bosId : null,
      eosId: tokenizer.eosIds[0] ?? null,
      maxLength,
      cut: options.maxLength !== null,
    };
    const encoded = records.map(({ record, source }) => encodeRecord(record, source, tokenizer, encoding));
    const firstHeld = records.length - options.heldOut;
    const weights = await loadWeights(device, config, model.checkpoint, {
      ...options.storage,
      ...(events.onLoad ? { onProgress: events.onLoad } : {}),
    });
    return {
      decoder: new Decoder(config, weights),
      tokenizer,
      modelName: model.name,
      train: encoded.slice(0, firstHeld),
      heldOut: encoded.slice(firstHeld),
      maxLength,
    };
  } finally {
    await model.close();
  }
}

/** Tokens of a record's learned part that a sample is shown, so that it continues a text instead of opening one. */
const SHOWN_TOKENS = 12;

/** How the shortest held-back record goes on, greedily, after its prompt and its first learned tokens. */
async function sampleText(run: LoadedRun, adapter: Adapter | null, maxTokens: number): Promise<Sample> {
  const { tokenizer, heldOut, decoder } = run;
  const record = heldOut.reduce((a, b) => (b.inputIds.length < a.inputIds.length ? b : a));
  const learnedFrom = record.labels.findIndex((label) => label !== -100);
  const ids = record.inputIds.slice(0, learnedFrom + SHOWN_TOKENS);
  const text = await generate(decoder, adapter, ids, { maxTokens, stopIds: tokenizer.eosIds });
  return { prompt: tokenizer.decode(ids), text: tokenizer.decode(text) };
}

/** Throws `L-DIVERGED`: what follows a loss that is not a number is worth nothing. */
function checkLoss(step: number, { loss, learningRate }: StepReport, sources: readonly string[]): void {
  if (Number.isFinite(loss)) return;
  throw new SidenetError(
    "L-DIVERGED",
    `the loss of step ${step} is ${loss} (learning rate ${learningRate}, records: ${sources.join("; ")}). No adapter was ` +
      "written. Try a lower --learning-rate or a longer --warmup-steps.",
  );
}

/**
 * Trains, evaluates, samples, and writes `adapter_config.json`, `adapter_model.safetensors` and `metrics.jsonl` to the
 * output folder; adapter files appear whole or not at all. `signal` stops after the current step, and what was trained by
 * then is evaluated and saved. Throws what reading, loading or the device throws, `L-DIVERGED`, and `T-ANOMALY` with
 * `detectAnomaly`, which switches the device's mode on.
 */
export async function trainRun(
  device: Device,
  options: TrainRunOptions,
  events: TrainRunEvents = {},
  signal?: AbortSignal,
): Promise<TrainSummary> {
  const schedule = makeSchedule({
    kind: options.schedule,
    lr: options.learningRate,
    warmupSteps: Math.min(options.warmupSteps, options.steps),
    totalSteps: options.steps,
  });
  if (options.detectAnomaly) device.detectAnomaly = true;
  const run = await load(device, options, events);
  using decoder = run.decoder;
  const { config } = decoder;
  using adapter = makeAdapter(options.method, decoder, run.modelName);
  const padId = config.padTokenId ?? run.tokenizer.eosIds[0] ?? 0;
  const evalBatches = inBatches(run.heldOut, options.batchSize, padId, run.maxLength);
  const frozen = await evaluateLoss(decoder, null, evalBatches);
  const initial = await evaluateLoss(decoder, adapter, evalBatches);
  events.onStart?.({
    trainableParameters: adapter.parameters.count,
    backboneParameters: decoder.weights.count,
    trainRecords: run.train.length,
    heldOutRecords: run.heldOut.length,
    frozenEvalLoss: frozen,
    initialEvalLoss: initial,
  });
  const before = options.sampleTokens > 0 ? await sampleText(run, null, options.sampleTokens) : null;
  if (before) events.onSample?.("before", before);

  await mkdir(options.outputDir, { recursive: true });
  using trainer = new Trainer(decoder, adapter, {
    ...options.memory,
    learningRate: schedule,
    weightDecay: options.weightDecay,
    maxGradNorm: options.maxGradNorm,
  });
  const trained = await trainSteps(trainer, run, { options, padId, events, signal: signal ?? null });
  const evalLoss = await evaluateLoss(decoder, adapter, evalBatches);
  const after = options.sampleTokens > 0 ? await sampleText(run, adapter, options.sampleTokens) : null;
  if (after) events.onSample?.("after", after);
  await saveAdapter(options.outputDir, adapter, { name: run.modelName, config });
  return {
    method: options.method.method,
    device: `${device.kind}: ${device.label}`,
    trainable_parameters: adapter.parameters.count,
    ...trained,
    frozen_eval_loss: frozen,
    initial_eval_loss: initial,
    eval_loss: evalLoss,
    adapter: options.outputDir,
    samples: before && after ? { before, after } : null,
  };
}

type Trained = Pick<
  TrainSummary,
  | "peak_bytes"
  | "peak_bytes_by_category"
  | "flops"
  | "tokens"
  | "loss"
  | "tokens_per_second"
  | "seconds"
  | "steps"
  | "stopped_early"
>;

async function trainSteps(
  trainer: Trainer,
  run: LoadedRun,
  context: { options: TrainRunOptions; padId: number; events: TrainRunEvents; signal: AbortSignal | null },
): Promise<Trained> {
  const { options, padId, events, signal } = context;
  const { device } = trainer.decoder;
  const { batchSize, seed } = options;
  const stream = new BatchStream(inMemory(run.train), { batchSize, seed, padId, maxLength: run.maxLength });
  const metricsFile = await open(join(options.outputDir, "metrics.jsonl"), "w");
  const losses: number[] = [];
  let tokens = 0;
  let seconds = 0;
  device.memory.resetPeak();
  const flopsBefore = device.flops;
  try {
    for (let step = 0; step < options.steps && !signal?.aborted; step++) {
      const { batch, sources } = await stream.next();
      const started = performance.now();
      const report = await trainer.step(batch);
      const elapsed = (performance.now() - started) / 1000;
      checkLoss(step, report, sources);
      losses.push(report.loss);
      tokens += report.tokens;
      seconds += elapsed;
      const peak = device.memory.peak(0);
      const metrics: StepMetrics = {
        step,
        loss: report.loss,
        grad_norm: report.gradNorm,
        learning_rate: report.learningRate,
        tokens: report.tokens,
        seconds: elapsed,
        tokens_per_second: report.tokens / elapsed,
        live_bytes: device.memory.liveBytes,
        peak_bytes: peak.peakBytes,
        peak_bytes_by_category: peak.byCategory,
      };
      await metricsFile.write(`${JSON.stringify(metrics)}\n`);
      events.onStep?.(metrics);
    }
  } finally {
    await metricsFile.close();
  }
  const peak = device.memory.peak();
  return {
    peak_bytes: peak.peakBytes,
    peak_bytes_by_category: peak.byCategory,
    flops: device.flops - flopsBefore,
    tokens,
    loss: losses,
    tokens_per_second: tokens / Math.max(seconds, 1e-9),
    seconds,
    steps: losses.length,
    stopped_early: losses.length < options.steps,
  };
}
