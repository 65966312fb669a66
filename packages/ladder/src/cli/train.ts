import { type BytesByCategory, CATEGORIES, SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import type { Method } from "../adapter.ts";
import type { WeightDType } from "../base-storage.ts";
import { type RunStart, type StepMetrics, type TrainSummary, trainRun } from "../node/train-run.ts";
import type { FieldMapping } from "../records.ts";
import { deviceOption, jsonOption, withDevice } from "./device.ts";
import {
  addMemoryOptions,
  addSizeOptions,
  LEARNING_RATES,
  type MemoryFlags,
  memoryOptions,
  methodOption,
  methodOptions,
  type SizeFlags,
  storageOf,
  weightDType,
} from "./method-options.ts";
import { fraction, nonNegativeInteger, positiveInteger, positiveNumber } from "./options.ts";
import type { Outcome, Session } from "./session.ts";
import { formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";

interface TrainOptions extends SizeFlags, MemoryFlags, FieldFlags {
  readonly model: string;
  readonly data: readonly string[];
  readonly method: Method;
  readonly output: string;
  readonly device: DeviceName;
  readonly dtype: WeightDType | "auto";
  readonly steps: number;
  readonly batchSize: number;
  readonly maxLength?: number;
  readonly heldOut: number;
  readonly learningRate?: number;
  readonly warmupSteps: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly weightDecay: number;
  readonly maxGradNorm: number;
  readonly sampleTokens: number;
  readonly detectAnomaly: boolean;
}

const HELP = `
Data: JSONL files, one object a line: {"text": "..."} or {"prompt": "...", "completion": "..."} (only the completion is
learned). Other field names are mapped with --text, or with --prompt and --completion.

Writes to the output folder: adapter_config.json, adapter_model.safetensors, metrics.jsonl (one line a step).
Ctrl-C stops after the current step and saves what was trained by then.

Example:
  $ npx sidenet train --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --method ladder --output out/run`;

export function defineTrain(program: Command, session: Session): void {
  const command = program
    .command("train")
    .description(
      "Fine-tune: train a side network or another adapter of a frozen model, or a whole small one.",
    )
    .requiredOption("--model <path>", "folder with config.json, .safetensors or .gguf file, or hub id")
    .requiredOption("--data <file...>", "JSONL files")
    .requiredOption("--output <dir>", "folder for the adapter and its metrics")
    .addOption(methodOption())
    .option("--steps <n>", "training steps", positiveInteger, 100)
    .option("--batch-size <n>", "records a step", positiveInteger, 4)
    .option(
      "--max-length <n>",
      "cut records to this many tokens (default: refuse what passes the context)",
      positiveInteger,
    )
    .option("--held-out <n>", "records at the end of the data kept for evaluation", positiveInteger, 16)
    .option("--learning-rate <x>", "highest learning rate (default: by method)", positiveNumber)
    .option("--warmup-steps <n>", "steps over which it rises", nonNegativeInteger, 5)
    .addOption(
      new Option("--schedule <name>", "what it does then")
        .choices(["constant", "linear", "cosine"])
        .default("cosine"),
    )
    .option("--weight-decay <x>", "AdamW's decoupled decay", fraction, 0.01)
    .option("--max-grad-norm <x>", "global norm that gradients are clipped to", positiveNumber, 1)
    .option(
      "--sample-tokens <n>",
      "length of the text shown before and after; 0: none",
      nonNegativeInteger,
      48,
    )
    .option("--detect-anomaly", "stop at the first NaN or infinity and name the op that made it; slow", false)
    .addOption(
      new Option("--dtype <type>", "storage of the frozen weights; auto takes f16 where the adapter has it")
        .choices(["auto", "f32", "f16"])
        .default("auto"),
    )
    .addOption(deviceOption())
    .addOption(jsonOption());
  addFieldOptions(command);
  addMemoryOptions(addSizeOptions(command)).addHelpText("after", HELP).action(session.action(train));
}

/** Fields of the records, as commander hands them over. */
export interface FieldFlags {
  readonly text?: string;
  readonly prompt?: string;
  readonly completion?: string;
}

export const addFieldOptions = (command: Command): Command =>
  command
    .option("--text <field>", "field to learn from")
    .option("--prompt <field>", "field that is read, not learned")
    .option("--completion <field>", "field that is learned after it");

/** Throws `C-USAGE` for fields that do not go together. */
export function fieldMapping({ text, prompt, completion }: FieldFlags): FieldMapping {
  if ((prompt === undefined) !== (completion === undefined) || (text !== undefined && prompt !== undefined)) {
    throw new SidenetError("C-USAGE", "give --text alone, or --prompt and --completion together.");
  }
  if (text !== undefined) return { text };
  return prompt !== undefined && completion !== undefined ? { prompt, completion } : {};
}

async function train(report: Report, options: TrainOptions): Promise<Outcome> {
  const fields = fieldMapping(options);
  const stop = new AbortController();
  const onSignal = () => {
    report.note("stopping after this step; what was trained so far will be saved");
    stop.abort();
  };
  process.once("SIGINT", onSignal).once("SIGTERM", onSignal);
  try {
    return await withDevice(options.device, report, async (device) => {
      const { model, output, maxLength, method, ...rest } = options;
      const summary = await trainRun(
        device,
        {
          ...rest,
          model,
          fields,
          outputDir: output,
          maxLength: maxLength ?? null,
          learningRate: options.learningRate ?? LEARNING_RATES[method],
          method: methodOptions(method, options),
          storage: storageOf(method, weightDType(options.dtype, device, method), options),
          memory: memoryOptions(options),
        },
        {
          onLoad: (done, total) =>
            report.progress(`reading the model: ${Math.round((100 * done) / total)} %`),
          onStart: (start) => report.note(describeStart(start)),
          onSample: (when, { prompt, text }) =>
            report.note(`\n${when} training:\n${indent(`${prompt}▸${text}`)}\n`),
          onStep: (metrics) => report.note(describeStep(metrics, options.steps)),
        },
        stop.signal,
      );
      report.print(describeSummary(summary));
      return { json: summary };
    });
  } finally {
    process.off("SIGINT", onSignal).off("SIGTERM", onSignal);
  }
}

const indent = (text: string): string => text.replace(/^/gm, "  | ");
const mib = (bytes: number): string => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const millions = (count: number): string => `${(count / 1e6).toFixed(2)} M`;

function describeStart(start: RunStart): string {
  const same = start.frozenEvalLoss === start.initialEvalLoss ? "equal, as it should be" : "DIFFERENT";
  return [
    `model: ${millions(start.backboneParameters)} parameters; trained: ${millions(start.trainableParameters)}`,
    `data: ${start.trainRecords} records to train on, ${start.heldOutRecords} held back`,
    `loss on held-back records: frozen model ${start.frozenEvalLoss.toFixed(4)}, with the untrained adapter ` +
      `${start.initialEvalLoss.toFixed(4)} (${same})`,
  ].join("\n");
}

/** "weights 257 + saved 35 + ... = 353 MiB": the parts of the peak so far, the largest first. */
function describePeak(bytes: BytesByCategory, total: number): string {
  const rounded = (count: number): string => (count / 2 ** 20).toFixed(0);
  const parts = CATEGORIES.filter((category) => bytes[category] >= 2 ** 19).sort(
    (a, b) => bytes[b] - bytes[a],
  );
  return `${parts.map((category) => `${category} ${rounded(bytes[category])}`).join(" + ")} = ${rounded(total)} MiB`;
}

function describeStep(metrics: StepMetrics, steps: number): string {
  return (
    `step ${String(metrics.step + 1).padStart(String(steps).length)}/${steps}  loss ${(metrics.loss ?? Number.NaN).toFixed(4)}  ` +
    `${metrics.tokens_per_second.toFixed(0)} tokens/s  ` +
    `peak ${describePeak(metrics.peak_bytes_by_category, metrics.peak_bytes)}`
  );
}

function memoryTable(bytes: BytesByCategory, total: number): string {
  const rows = CATEGORIES.filter((category) => bytes[category] > 0).map((category) => [
    category,
    mib(bytes[category]),
    `${((100 * bytes[category]) / total).toFixed(1)} %`,
  ]);
  return formatTable(["peak memory", "", ""], [...rows, ["total", mib(total), ""]]);
}

function describeSummary(summary: TrainSummary): string {
  const { frozen_eval_loss: before, eval_loss: after } = summary;
  return [
    "",
    memoryTable(summary.peak_bytes_by_category, summary.peak_bytes),
    "",
    `loss on held-back records: ${before.toFixed(4)} (frozen model) → ${after?.toFixed(4)} (trained)`,
    `${summary.steps} steps${summary.stopped_early ? " (stopped early)" : ""}, ${summary.tokens} tokens in ` +
      `${summary.seconds.toFixed(0)} s: ${summary.tokens_per_second.toFixed(0)} tokens/s, ` +
      `${(summary.flops / summary.seconds / 1e9).toFixed(1)} GFLOP/s`,
    `adapter: ${summary.adapter}`,
  ].join("\n");
}
