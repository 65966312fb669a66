/** `sidenet compare`: several methods with the same data and seed, or planned side by side. */
import { existsSync } from "node:fs";
import { join } from "node:path";
import { CATEGORIES, type Device, SidenetError } from "@sidenet/tensor";
import type { Command } from "commander";
import { writeJsonFile } from "../node/json-file.ts";
import { makeFolder } from "../node/make-folder.ts";
import { RESULTS, writeReport } from "../node/report.ts";
import { readRunFile } from "../node/run/run-folder.ts";
import { lockRunFolder } from "../node/run/run-lock.ts";
import { type TrainRunEvents, type TrainSummary, trainRun } from "../node/train-run.ts";
import { addConfigOptions } from "./config-options.ts";
import {
  addFieldOptions,
  type FieldFlags,
  fieldMapping,
  heldOutOption,
  weightedFile,
} from "./data-options.ts";
import { withDevice } from "./device.ts";
import { addMemoryOptions, addSizeOptions } from "./method-options.ts";
import { listOf, positiveInteger, positiveNumber } from "./options.ts";
import { addAdapterOptions, openPlannedConfig } from "./plan.ts";
import { contextNote, type PlanFlags, planAll, plannedDevice, planTable } from "./plan-rows.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { stopOnSignals } from "./signals.ts";
import { formatBytes, formatCount, formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";
import { parseVariant, settingsOf, type Variant } from "./variants.ts";

interface CompareOptions extends PlanFlags, FieldFlags {
  readonly model: string;
  readonly methods?: readonly Variant[];
  readonly data?: readonly string[];
  readonly output?: string;
  readonly context?: readonly number[];
  readonly steps: number;
  readonly batchSize?: number;
  readonly maxLength?: number;
  readonly heldOut: number;
  readonly learningRate?: number;
  readonly overwrite: boolean;
}

const DEFAULT_METHODS = ["ladder", "xladder", "qlora", "qlora+checkpointing", "lora"];
const DEFAULT_CONTEXTS = [512, 2048, 8192, 32768];

const HELP = `
With --data each method trains on the same records in the same order, from the same seed, and is evaluated on the same
held-out records; each writes its adapter and metrics to a folder of its own in --output, beside results.json. A method that
runs out of memory or diverges is left out, and the exit code is 1; Ctrl-C ends after the current step. Without
--data, or with --device meta, the steps are planned and nothing but a config.json is read. Methods may have suffixes,
as in sidenet plan. An xLadder has as many parameters as the Ladder, within 1 %, unless --side-width is given.

Examples:
  $ npx sidenet compare --model SmolLM2-135M-Instruct.Q4_1.gguf --data train.jsonl --output out/compare --steps 50
  $ npx sidenet compare --model Llama-3.1-8B --device meta --context 512 2048 8192 32768`;

export function defineCompare(program: Command, session: Session): void {
  const command = program
    .command("compare")
    .description("Compare methods: loss, peak memory by category, speed and trainable parameters.")
    .requiredOption("--model <path>", "the model, as for train (with --data) or for plan (without)")
    .option(
      "--methods <names...>",
      `methods to compare (default: ${DEFAULT_METHODS.join(",")})`,
      listOf(parseVariant),
    )
    .option("--data <file...>", "data files, as for train; without them the methods are only planned")
    .option("--output <dir>", "folder for results.json, adapters and metrics; needed with --data")
    .option("--overwrite", "replace the comparison that --output holds", false)
    .option(
      "--context <n...>",
      `planned: tokens per row (default: ${DEFAULT_CONTEXTS.join(" ")})`,
      listOf(positiveInteger),
    )
    .option("--steps <n>", "training steps of each method", positiveInteger, 50)
    .option("--batch-size <n>", "records per step (default: 4; planned: 1)", positiveInteger)
    .option("--max-length <n>", "truncate records to this many tokens", positiveInteger)
    .addOption(heldOutOption())
    .option(
      "--learning-rate <x>",
      "peak learning rate of all methods (default: by method and model)",
      positiveNumber,
    );
  addFieldOptions(command);
  addAdapterOptions(command, "auto");
  addMemoryOptions(addSizeOptions(command)).addHelpText("after", HELP).action(session.action(compare));
  addConfigOptions(command);
}

async function compare(report: Report, options: CompareOptions): Promise<Outcome> {
  const variants = options.methods ?? DEFAULT_METHODS.map(parseVariant);
  const planned = options.device === "meta" || options.data === undefined;
  if (!planned && options.output === undefined) {
    throw new SidenetError("C-USAGE", "--data needs --output, a folder for adapters and results.");
  }
  if (options.output !== undefined) await refuseExisting(options.output, variants, options.overwrite);
  const unlock = planned ? null : await lockRunFolder(options.output!); // two comparisons would mix their results
  try {
    return await compareAndWrite(report, options, variants, planned);
  } finally {
    await unlock?.();
  }
}

/**
 * Throws `L-RUN-EXISTS` for the folder of a training run, and unless `overwrite` is set for one that holds a comparison, or runs
 * of these methods: now, and not after the methods before them.
 */
async function refuseExisting(
  output: string,
  variants: readonly Variant[],
  overwrite: boolean,
): Promise<void> {
  const refuse = (text: string): never => {
    throw new SidenetError("L-RUN-EXISTS", text);
  };
  if ((await readRunFile(output)) !== null)
    refuse(`${output} is the folder of a training run. Choose another --output for the comparison.`);
  if (overwrite) return;
  const cure = "Choose another --output, or replace it with --overwrite.";
  if (existsSync(join(output, RESULTS))) refuse(`${output} holds a comparison already. ${cure}`);
  for (const { name } of variants) {
    const folder = join(output, name);
    if ((await readRunFile(folder)) !== null) refuse(`${folder} holds a training run already. ${cure}`);
  }
}

async function compareAndWrite(
  report: Report,
  options: CompareOptions,
  variants: readonly Variant[],
  planned: boolean,
): Promise<Outcome> {
  const { text, ...outcome } = planned
    ? await comparePlans(report, options, variants)
    : await compareRuns(report, options, variants);
  // Files before text: whoever reads standard output may close it (`| head`), which ends the process.
  let page = "";
  if (options.output !== undefined) {
    await makeFolder(options.output);
    await writeJsonFile(join(options.output, RESULTS), outcome.json);
    if (!planned) page = `\nreport: ${await writeReport(options.output)}`;
  }
  report.print(text + page);
  return outcome;
}

/** What was found, with the text for people. */
type Compared = Outcome & { readonly text: string };

async function comparePlans(
  report: Report,
  options: CompareOptions,
  variants: readonly Variant[],
): Promise<Compared> {
  const flags = {
    ...options,
    device: options.device === "auto" ? ("meta" as const) : options.device,
    batchSize: options.batchSize ?? 1,
    gradientAccumulation: 1,
  };
  const config = await openPlannedConfig(options.model);
  const device = await plannedDevice(report, flags);
  const results = planAll(config, variants, options.context ?? DEFAULT_CONTEXTS, flags, device);
  const note = contextNote(results, config);
  const head = `${options.model}, batch ${flags.batchSize}, planned for ${device.label}\n\n`;
  return {
    text: head + planTable(results) + (note && `\n\n${note}`),
    json: {
      model: options.model,
      planned: true,
      device: device.kind,
      adapter: device.label,
      batch_size: flags.batchSize,
      results,
    },
  };
}

/** A method that could not be trained to the end. */
interface FailedRun {
  readonly method: string;
  readonly error: { readonly code: string; readonly message: string };
}

type Result = TrainSummary | FailedRun;

/** Errors that a method has for itself: the others may do better. */
const OF_ONE_METHOD = ["T-OUT-OF-MEMORY", "L-DIVERGED"];

async function compareRuns(
  report: Report,
  options: CompareOptions,
  variants: readonly Variant[],
): Promise<Compared> {
  const results: Result[] = [];
  using stop = stopOnSignals(
    report,
    "stopping before the next step; the results of finished methods are kept",
  );
  const device = await withDevice(options, report, async (device) => {
    for (const variant of variants) settingsOf(variant, options, device); // reports mistakes before hours are spent
    for (const variant of variants) {
      report.note(`\n${variant.name}`);
      const result = await runVariant(device, report, options, variant, stop.signal).catch((error) => {
        // A failure of the first method that is not its own would be that of all; later, earlier results deserve their table.
        if (results.length === 0 && !isOfOneMethod(error)) throw error;
        return failedRun(report, variant, error);
      });
      results.push(result);
      if (stop.signal.aborted || ("error" in result && !OF_ONE_METHOD.includes(result.error.code))) break;
    }
    return { device: device.kind, adapter: device.label };
  });
  const { steps, batchSize = RUN_BATCH, seed } = options;
  const failed = results.some((result) => "error" in result);
  return {
    text: runTable(results),
    json: { model: options.model, planned: false, ...device, steps, batch_size: batchSize, seed, results },
    exitCode: stop.signal.aborted ? stop.exitCode() : failed ? EXIT.failed : EXIT.ok,
  };
}

const isOfOneMethod = (error: unknown): boolean =>
  error instanceof SidenetError && [...OF_ONE_METHOD, "L-STOPPED"].includes(error.code);

/** Reports the error at once. Rethrows errors that are not the library's. */
function failedRun(report: Report, { name }: Variant, error: unknown): FailedRun {
  if (!(error instanceof SidenetError)) throw error;
  report.error(`${name}: ${error.message}`);
  return { method: name, error: { code: error.code, message: error.text } };
}

const RUN_BATCH = 4;

/** One run, as `sidenet train` does it. */
async function runVariant(
  device: Device,
  report: Report,
  options: CompareOptions,
  variant: Variant,
  signal: AbortSignal,
): Promise<TrainSummary> {
  const { model, data = [], output = "", steps, batchSize = RUN_BATCH, seed, heldOut } = options;
  const { method, storage, memory } = settingsOf(variant, options, device);
  const { maxLength = null, learningRate = null, overwrite } = options;
  const optimization = {
    warmupSteps: Math.min(5, steps),
    schedule: "cosine",
    weightDecay: 0.01,
    maxGradNorm: 1,
  } as const;
  const run = {
    model,
    data: data.map(weightedFile),
    fields: fieldMapping(options),
    outputDir: join(output, variant.name),
    method,
    storage,
    memory,
    steps,
    batchSize,
    heldOut,
    seed,
    maxLength,
    learningRate,
    ...optimization,
    sampleTokens: 0,
    existing: overwrite ? ("overwrite" as const) : ("refuse" as const),
    settings: {
      method: variant.name,
      steps,
      "batch-size": batchSize,
      seed,
      "held-out": heldOut,
      "max-length": maxLength,
      "learning-rate": learningRate,
      schedule: optimization.schedule,
      "warmup-steps": optimization.warmupSteps,
      "weight-decay": optimization.weightDecay,
      "max-grad-norm": optimization.maxGradNorm,
    },
  };
  const onStep: TrainRunEvents["onStep"] = ({ step, loss, tokens_per_second: speed }) =>
    report.progress(`step ${step + 1}/${steps}  loss ${lossText(loss)}  ${speed.toFixed(0)} tokens/s`);
  const summary = await trainRun(device, run, { onStep }, signal);
  report.note(`${variant.name}: held-out loss ${lossText(summary.eval_loss)}`);
  return { ...summary, method: variant.name };
}

/** A step whose loss was not finite, and an evaluation that there was none of, have no number. */
const lossText = (loss: number | null | undefined): string => loss?.toFixed(4) ?? "-";

function runTable(results: readonly Result[]): string {
  const head = ["method", "loss", "eval loss", "tokens/s", "s", "peak", ...CATEGORIES, "trained"];
  const rows = results.map((run) =>
    "error" in run
      ? [run.method, run.error.code, ...head.slice(2).map(() => "-")]
      : [
          run.method,
          lossText(run.loss.at(-1)),
          lossText(run.eval_loss),
          run.tokens_per_second.toFixed(0),
          run.seconds.toFixed(0),
          formatBytes(run.peak_bytes),
          ...CATEGORIES.map((category) => formatBytes(run.peak_bytes_by_category[category])),
          formatCount(run.trainable_parameters),
        ],
  );
  return formatTable(head, rows);
}
