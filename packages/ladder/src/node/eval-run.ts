/** One evaluation from files: everything `sidenet eval` does, with its terminal left out. */
import type { Device } from "@sidenet/tensor";
import { type FieldMapping, mapFields } from "../data/field-mapping.ts";
import type { Row } from "../data/rows.ts";
import { deviceName } from "../device-name.ts";
import {
  type ConstantAnswer,
  type EvalOptions,
  type EvalResult,
  prepareEvaluation,
} from "../eval/evaluate.ts";
import { type Estimate, estimate, estimateDifference, type Metric } from "../eval/intervals.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readRows } from "./data/rows.ts";
import { type InferenceOptions, openInference } from "./inference.ts";
import { checkOutputFile } from "./output-folder.ts";

/** Model, data and task of an evaluation. */
export interface EvalRunOptions extends InferenceOptions, Omit<EvalOptions, "context" | "stride"> {
  /** Tokens of a window; null: 512, or the model's context where that is shorter. */
  readonly context: number | null;
  /** Tokens between windows; null: half of one. */
  readonly stride: number | null;
  readonly data: readonly string[];
  readonly fields: FieldMapping;
  /** Rows that are looked at, from the start; null: all. */
  readonly limit: number | null;
  /** Of the bootstrap. */
  readonly seed: number;
  /** File for what was found row by row; null: none. */
  readonly predictions: string | null;
}

/** Scores by the names of docs/guide-evaluate.md. */
export type Estimates = Readonly<Record<string, Estimate>>;

/** The object of `sidenet eval --json`; docs/guide-evaluate.md says what the metrics are. */
export interface EvalSummary {
  readonly task: string;
  readonly data: readonly string[];
  readonly model: string;
  readonly adapter: string | null;
  readonly template: string;
  readonly quantized: boolean;
  /** Tokens of the prefix before every prompt; 0: none. */
  readonly prefix_tokens: number;
  readonly device: string;
  /** Questions, or windows of text. */
  readonly count: number;
  /** Accuracy of the single most frequent right answer; null where questions differ in their choices, or have none. */
  readonly constant_answer: ConstantAnswer | null;
  /** The model alone. */
  readonly before: Estimates;
  /** With the adapter; null without one, as is the difference. */
  readonly after: Estimates | null;
  /** After minus before, over the same items. */
  readonly difference: Estimates | null;
  readonly seconds: number;
}

/** Events of an evaluation. */
export interface EvalRunEvents {
  /** Bytes of the model that are read, and all there are. */
  onLoad?(done: number, total: number): void;
  /** Items that were scored, without the adapter and with it. */
  onProgress?(done: number, total: number): void;
}

async function readSome({ data, fields, limit }: EvalRunOptions): Promise<Row[]> {
  const rows: Row[] = [];
  for (const path of data) {
    for await (const { value, source } of readRows(path)) {
      if (limit !== null && rows.length >= limit) return rows;
      rows.push({ value: mapFields(value, fields, source), source });
    }
  }
  return rows;
}

const named = (metrics: readonly Metric[], of: (metric: Metric, index: number) => Estimate): Estimates =>
  Object.fromEntries(metrics.map((metric, index) => [metric.name, of(metric, index)]));

function predictionLines(before: EvalResult, after: EvalResult | null): string {
  return before.predictions
    .map((found, i) => JSON.stringify({ before: found, ...(after && { after: after.predictions[i] }) }))
    .map((line) => `${line}\n`)
    .join("");
}

function windowsFor(options: EvalRunOptions, limit: number): Pick<EvalOptions, "context" | "stride"> {
  const context = options.context ?? Math.min(512, limit);
  return { context, stride: options.stride ?? Math.max(1, Math.floor(context / 2)) };
}

/** Scores a task with the model alone and, if given, with an adapter. Throws what reading, loading and scoring throw. */
export async function evalRun(
  device: Device,
  options: EvalRunOptions,
  events: EvalRunEvents = {},
): Promise<EvalSummary> {
  if (options.predictions !== null) await checkOutputFile(options.predictions, options.data);
  const rows = await readSome(options);
  using inference = await openInference(device, options, (done, total) => events.onLoad?.(done, total));
  const { decoder, adapter, tokenizer, isQuantized } = inference;
  const started = performance.now();
  const evaluation = prepareEvaluation(rows, tokenizer, {
    ...options,
    ...windowsFor(options, decoder.contextLimit),
  });
  const { count, constantAnswer } = evaluation;
  const [before, after = null] = await evaluation.run(
    decoder,
    adapter ? [null, adapter] : [null],
    (done, total) => events.onProgress?.(done, total),
  );
  const { seed } = options;
  if (options.predictions !== null) {
    await writeFileAtomic(options.predictions, predictionLines(before, after));
  }
  return {
    task: options.task,
    data: options.data,
    model: options.model,
    adapter: options.adapter,
    template: options.template,
    quantized: isQuantized,
    prefix_tokens: decoder.prefixIds.length,
    device: deviceName(device),
    count,
    constant_answer: constantAnswer,
    before: named(before.metrics, (metric) => estimate(metric, seed)),
    after: after && named(after.metrics, (metric) => estimate(metric, seed)),
    difference:
      after && named(after.metrics, (metric, i) => estimateDifference(before.metrics[i], metric, seed)),
    seconds: (performance.now() - started) / 1000,
  };
}
