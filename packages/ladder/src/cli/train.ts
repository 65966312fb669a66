import { SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import type { Method } from "../methods/adapter.ts";
import { writeReport } from "../node/report.ts";
import { readRunFile } from "../node/run/run-folder.ts";
import { type TrainRunEvents, type TrainRunOptions, trainRun } from "../node/train-run.ts";
import { addConfigOptions, type Layers } from "./config-options.ts";
import {
  addFieldOptions,
  addQuestionSettings,
  type FieldFlags,
  fieldMapping,
  heldOutOption,
  type QuestionFlags,
  weightedFile,
} from "./data-options.ts";
import { deviceOption, jsonOption, withDevice } from "./device.ts";
import { showLoading } from "./download-progress.ts";
import {
  addMemoryOptions,
  addSizeOptions,
  dtypeOption,
  type MemoryFlags,
  memoryOptions,
  methodOption,
  methodOptions,
  refuseOtherMethods,
  type SizeFlags,
  storageOf,
  type WeightChoice,
  weightDType,
} from "./method-options.ts";
import { nonNegativeInteger, numberWithin, positiveInteger, positiveNumber } from "./options.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { applySettings, checkSettings, currentSettings, type Settings } from "./settings.ts";
import { stopOnSignals } from "./signals.ts";
import type { Report } from "./terminal.ts";
import {
  describeEvaluation,
  describeProgress,
  describeSample,
  describeStart,
  describeStep,
  describeSummary,
} from "./train-report.ts";

interface TrainOptions extends SizeFlags, MemoryFlags, FieldFlags, QuestionFlags {
  readonly model: string;
  readonly data: readonly string[];
  readonly method: Method;
  readonly output: string;
  readonly device: DeviceName;
  readonly dtype: WeightChoice;
  readonly steps: number;
  readonly batchSize: number;
  readonly gradientAccumulation: number;
  readonly maxLength?: number;
  readonly packLength?: number;
  readonly bucketByLength: boolean;
  readonly heldOut: number;
  readonly learningRate?: number;
  readonly warmupSteps: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly weightDecay: number;
  readonly maxGradNorm: number;
  readonly calibration?: number;
  readonly sampleTokens: number;
  readonly detectAnomaly: boolean;
  readonly onNonfinite: "stop" | "skip";
  readonly saveEvery: number;
  readonly keep: number;
  readonly evalEvery?: number;
  readonly patience?: number;
  readonly logEvery: number;
}

/** Flags that are no settings of the run. */
interface InvocationFlags {
  readonly resume?: boolean;
  readonly overwrite?: boolean;
  readonly memoryTimeline?: string;
}

const HELP = `
Data: JSONL, JSON, CSV, TSV, Parquet or text files. Records: {"text"}, {"prompt", "completion"} (trained on the completion),
{"messages": [{"role", "content"}]} (trained on what the assistant says, in the model's chat template), or {"question",
"choices", "label"} (trained on the right choice). Map other field names with --map prompt=question completion=answer.
"a.jsonl:3" samples a file's records three times as often as those of a file without a weight. See docs/guide-data.md.

Writes to the output folder: adapter_config.json, adapter_model.safetensors, checkpoints, metrics.jsonl, report.html.
Ctrl-C stops before the next step and saves a checkpoint; a second Ctrl-C stops at once and leaves the last checkpoint.
--resume continues from there.

Exit codes: 0 done, 1 failed, 2 a mistake in flags or config, 129, 130 or 143 stopped by SIGHUP (closed
terminal), SIGINT or SIGTERM.

Examples:
  $ npx sidenet train --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --method ladder --output out/run
  $ npx sidenet train --config run.yaml --set learning-rate=0.002   # sidenet init run.yaml writes one
  $ npx sidenet train --output out/run --resume`;

export function defineTrain(program: Command, session: Session): void {
  const command = program
    .command("train")
    .description(
      "Fine-tune a model: train a side network or a LoRA beside its frozen weights, or all weights of a small one.",
    )
    .option("--resume", "continue from the last checkpoint in --output, if there is one")
    .option("--overwrite", "replace the run that --output holds")
    .option(
      "--memory-timeline <file>",
      "write the live bytes by category after each op of the second step, as JSON lines",
    );
  addTrainSettings(command).addOption(jsonOption()).addHelpText("after", HELP).action(session.action(train));
  addConfigOptions(command, ["model", "data", "output"], (layers) =>
    inheritSettings(session.report, command, layers),
  );
}

/** Every setting of a training run, none required: a config file may have it. */
export function addTrainSettings(command: Command): Command {
  command
    .option("--model <path>", "folder with config.json, .safetensors or .gguf file, hub id, or tiny-books")
    .option("--data <file...>", "data files; FILE:WEIGHT to sample files unequally")
    .option("--output <dir>", "folder for the adapter, checkpoints and metrics")
    .addOption(methodOption())
    .option("--steps <n>", "training steps", positiveInteger, 100)
    .option("--batch-size <n>", "records per batch", positiveInteger, 4)
    .option("--gradient-accumulation <n>", "batches per optimizer step", positiveInteger, 1)
    .option(
      "--max-length <n>",
      "truncate records to this many tokens (default: refuse records longer than the context)",
      positiveInteger,
    )
    .option(
      "--pack-length <n>",
      "pack several records into rows of this many tokens (default: one record per row)",
      positiveInteger,
    )
    .option("--bucket-by-length", "batch records of similar lengths, so that there is less padding", false)
    .addOption(heldOutOption())
    .option("--learning-rate <x>", "peak learning rate (default: by method and model)", positiveNumber)
    .option("--warmup-steps <n>", "steps of linear warmup", nonNegativeInteger, 5)
    .addOption(
      new Option("--schedule <name>", "learning-rate schedule after the warmup")
        .choices(["constant", "linear", "cosine"])
        .default("cosine"),
    )
    .option("--weight-decay <x>", "AdamW's decoupled weight decay", numberWithin(0, 100), 0.01)
    .option("--max-grad-norm <x>", "clip gradients to this global norm", positiveNumber, 1);
  command.option("--calibration <n>", "records used by --importance fisher (default: 16)", positiveInteger);
  addQuestionSettings(command);
  addWatchingSettings(command);
  addFieldOptions(command).addOption(dtypeOption()).addOption(deviceOption());
  return addMemoryOptions(addSizeOptions(command));
}

/** Options for evaluation, checkpoints and output of a long run. */
function addWatchingSettings(command: Command): void {
  command
    .option("--eval-every <n>", "evaluate every n steps (default: only at the end)", positiveInteger)
    .option(
      "--patience <n>",
      "stop after n evaluations without a lower loss (default: never)",
      positiveInteger,
    )
    .option(
      "--sample-tokens <n>",
      "tokens of the sample text shown before training, at evaluations and after it; 0: none",
      nonNegativeInteger,
      48,
    )
    .option("--save-every <n>", "write a checkpoint every n steps", positiveInteger, 100)
    .option("--keep <n>", "checkpoints to keep", positiveInteger, 2)
    .option(
      "--log-every <n>",
      "print a line every n steps, where output is not a terminal",
      positiveInteger,
      10,
    )
    .addOption(
      new Option("--on-nonfinite <what>", "what to do at a step whose loss or gradient is NaN or infinite")
        .choices(["stop", "skip"])
        .default("stop"),
    )
    .option(
      "--detect-anomaly",
      "stop at the first NaN or infinity and name the op that produced it; slow",
      false,
    );
}

/** Settings that fix which records a step gets, and what is trained: with others, a resumed run would be another run. */
const FIXED = [
  ...["method", "batch-size", "seed", "held-out", "eval-data", "pack-length", "bucket-by-length"],
  ...["task", "template", "chat-template", "map", "text", "prompt", "completion"],
  ...["reduction", "side-width", "layers", "rungs-at", "delta", "fusion", "initial-rung", "rung-norm"],
  ...["rank", "alpha", "rslora", "lora-layers", "targets"],
];

/** Notes the changed settings of a resumed run. Throws `C-USAGE` for a change that would make it another run. */
function compareSettings(report: Report, before: Settings, now: Settings): void {
  const same = (name: string) => JSON.stringify(before[name]) === JSON.stringify(now[name]);
  const changed = Object.keys({ ...before, ...now }).filter((name) => name !== "output" && !same(name));
  const shown = (value: unknown) => (value === undefined ? "its default" : JSON.stringify(value));
  for (const name of changed) {
    const change = `${name} was ${shown(before[name])}, now it is ${shown(now[name])}`;
    if (FIXED.includes(name)) {
      throw new SidenetError(
        "C-USAGE",
        `${change}: that would be another run. Leave --${name} out, or start anew in another --output.`,
      );
    }
    report.note(`resumed with a change: ${change}`);
  }
}

/** Applies the settings of the resumed run, which settings given now override. Throws `C-USAGE`, and as `readRunFile`. */
async function inheritSettings(report: Report, command: Command, layers: Layers): Promise<void> {
  const { resume, overwrite, output } = command.opts<InvocationFlags & Partial<TrainOptions>>();
  if (resume && overwrite) throw new SidenetError("C-USAGE", "--resume and --overwrite exclude each other.");
  if (!resume || output === undefined) return;
  const run = await readRunFile(output);
  if (run === null) {
    const { model, data } = command.opts<Partial<TrainOptions>>();
    if (model !== undefined && data !== undefined)
      report.note(`${output} holds no run yet: starting a new one`);
    else throw new SidenetError("C-USAGE", `${output} holds no run to resume. Check --output.`);
    return;
  }
  const known = Object.entries(run.settings).filter(([, value]) => value !== null);
  const before = checkSettings(command, Object.fromEntries(known), `the run in ${output}`);
  applySettings(command, before, ...layers);
  compareSettings(report, run.settings, currentSettings(command));
}

function eventsOf(report: Report, { steps, logEvery }: TrainOptions): TrainRunEvents {
  let first = true;
  return {
    onLoad: showLoading(report),
    onNote: (text) => report.note(text),
    onStart: (start) => report.note(describeStart(start, steps)),
    onSample: (when, sample) => {
      report.endBar();
      report.note(describeSample(when, sample));
    },
    onEvaluation: (line) => report.note(describeEvaluation(line)),
    onStep: (line) => {
      const done = line.step + 1;
      report.bar(done, steps, describeProgress(line));
      if (!report.watched && (first || done % logEvery === 0 || done >= steps)) {
        report.note(describeStep(line, steps));
      }
      first = false;
    },
  };
}

async function train(
  report: Report,
  options: TrainOptions & InvocationFlags,
  command: Command,
): Promise<Outcome> {
  const { resume = false, overwrite = false, memoryTimeline } = options;
  if (options.calibration !== undefined && options.importance !== "fisher")
    throw new SidenetError("C-USAGE", "--calibration is what --importance fisher is measured on. Give both.");
  if (options.patience !== undefined && options.evalEvery === undefined)
    throw new SidenetError("C-USAGE", "--patience counts the evaluations of --eval-every. Give both.");
  refuseOtherMethods(command, options.method);
  const { output: outputDir, method, onNonfinite: onNonFinite } = options;
  const run: Omit<TrainRunOptions, "storage" | "memory"> = {
    ...options,
    data: options.data.map(weightedFile),
    fields: fieldMapping(options),
    outputDir,
    memoryTimeline: memoryTimeline ?? null,
    maxLength: options.maxLength ?? null,
    method: methodOptions(method, options),
    onNonFinite,
    existing: resume ? "resume" : overwrite ? "overwrite" : "refuse",
    settings: currentSettings(command),
  };
  using stop = stopOnSignals(report, "stopping before the next step; a checkpoint will be saved");
  let failed = false;
  const events: TrainRunEvents = {
    ...eventsOf(report, options),
    onFailure: () => {
      failed = true;
    },
  };
  try {
    return await withDevice(options, report, async (device) => {
      const storage = storageOf(method, weightDType(options.dtype, device, method), options);
      const memory = memoryOptions(options, method, storage);
      const summary = await trainRun(device, { ...run, storage, memory }, events, stop.signal);
      report.endBar();
      const page = await writeReport(outputDir);
      report.print(describeSummary(summary));
      report.print(`report: ${page}`);
      return { json: summary, exitCode: summary.stop_reason === "signal" ? stop.exitCode() : EXIT.ok };
    });
  } catch (error) {
    report.endBar();
    if (failed) await reportFailedRun(report, outputDir);
    if (!(error instanceof SidenetError) || error.code !== "L-STOPPED") throw error;
    report.error(error.message);
    return { json: { stopped: error.code }, exitCode: stop.exitCode() };
  } finally {
    report.endBar();
  }
}

/** Writes the report of a failed run, if the failure does not prevent that. */
async function reportFailedRun(report: Report, folder: string): Promise<void> {
  try {
    report.note(`report of the run so far: ${await writeReport(folder)}`);
  } catch (error) {
    report.note(`the report could not be written: ${error instanceof Error ? error.message : String(error)}`);
  }
}
