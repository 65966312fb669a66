/** What a training run can be told: its data, schedule, evaluations, checkpoints and memory. `train`, `compare` and `init` share it. */
import { SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import {
  addFieldOptions,
  addQuestionSettings,
  type FieldFlags,
  fieldMapping,
  modelOption,
  type QuestionFlags,
  weightedFile,
} from "./data-options.ts";
import { deviceOption } from "./device.ts";
import {
  addStepOptions,
  methodOption,
  methodOptions,
  refuseOtherMethods,
  type StepFlags,
} from "./method-options.ts";
import { nonNegativeInteger, numberWithin, positiveInteger, positiveNumber } from "./options.ts";
import type { ShownRun } from "./training-run.ts";

/** As commander hands them over. */
export interface TrainingFlags extends StepFlags, FieldFlags, QuestionFlags {
  readonly model: string;
  readonly data: readonly string[];
  readonly output: string;
  readonly device: DeviceName;
  readonly steps: number;
  readonly maxLength?: number;
  readonly packLength?: number;
  readonly bucketByLength: boolean;
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

/** Every setting of a run of one method, none required: a config file may have it. */
export function addTrainSettings(command: Command): Command {
  command
    .addOption(modelOption())
    .option("--data <file...>", "data files; FILE:WEIGHT to sample files unequally")
    .option("--output <dir>", "folder for the adapter, checkpoints and metrics")
    .addOption(methodOption());
  return addStepOptions(addRunOptions(command).addOption(deviceOption()), TRAINED_BATCH);
}

/** Records per batch, unless given. */
export const TRAINED_BATCH = 4;

/** What only a run with data has, beside the options of its steps (`addStepOptions`). */
export function addRunOptions(command: Command): Command {
  command
    .option("--steps <n>", "training steps", positiveInteger, 100)
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
    .option("--learning-rate <x>", "peak learning rate (default: by method and model)", positiveNumber)
    .option("--warmup-steps <n>", "steps of linear warmup", nonNegativeInteger, 5)
    .addOption(
      new Option("--schedule <name>", "learning-rate schedule after the warmup")
        .choices(["constant", "linear", "cosine"])
        .default("cosine"),
    )
    .option("--weight-decay <x>", "AdamW's decoupled weight decay", numberWithin(0, 100), 0.01)
    .option("--max-grad-norm <x>", "clip gradients to this global norm", positiveNumber, 1)
    .option("--calibration <n>", "records used by --importance fisher (default: 16)", positiveInteger);
  addQuestionSettings(command);
  addWatchingSettings(command);
  return addFieldOptions(command);
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

/** Throws `C-USAGE` for flags that do not go together, or do nothing for the method. */
export function checkFlags(command: Command, flags: TrainingFlags): void {
  refuseOtherMethods(command, [flags.method]);
  runOptions(flags);
}

/** Throws `C-USAGE` for a flag that does nothing beside another, or without one. */
function refuseIdleFlags(flags: TrainingFlags): void {
  const { calibration, importance, patience, evalEvery, heldOut, evalData, packLength, task, text, prompt } =
    flags;
  const idle: readonly (readonly [isIdle: boolean, message: string])[] = [
    [
      calibration !== undefined && importance !== "fisher",
      "--calibration is what --importance fisher is measured on. Give both.",
    ],
    [
      patience !== undefined && evalEvery === undefined,
      "--patience counts the evaluations of --eval-every. Give both.",
    ],
    [
      heldOut !== undefined && evalData !== undefined,
      "--eval-data takes the place of held-out records. Leave --held-out out.",
    ],
    [
      flags.bucketByLength && packLength !== undefined,
      "--pack-length fills rows with records of any length, so --bucket-by-length does nothing. Give one of them.",
    ],
    [
      task === "blimp" && flags.template === "chat",
      "--template chat does nothing for blimp, which asks nothing. Leave it out.",
    ],
    [
      task !== undefined && (text ?? prompt) !== undefined,
      `--text, --prompt and --completion are fields of plain records; those that --task ${task} reads are mapped by --map.`,
    ],
  ];
  for (const [isIdle, message] of idle) if (isIdle) throw new SidenetError("C-USAGE", message);
}

/** The run that the flags describe, but for what depends on the device. Throws `C-USAGE` for flags that do not go together. */
export function runOptions(flags: TrainingFlags): Omit<ShownRun, "storage" | "memory"> {
  refuseIdleFlags(flags);
  return {
    ...flags,
    heldOut: flags.heldOut ?? null,
    data: flags.data.map(weightedFile),
    fields: fieldMapping(flags),
    outputDir: flags.output,
    maxLength: flags.maxLength ?? null,
    method: methodOptions(flags.method, flags),
    onNonFinite: flags.onNonfinite,
  };
}
