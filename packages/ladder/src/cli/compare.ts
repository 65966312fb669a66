/** `sidenet compare`: several methods with the same data and seed, or planned side by side. */

import { existsSync } from "node:fs";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { DEVICE_NAMES } from "@sidenet/tensor/node";
import { Command } from "commander";
import { deviceName } from "../device-name.ts";
import { writeJsonFile } from "../node/json-file.ts";
import { makeFolder } from "../node/make-folder.ts";
import { RESULTS, writeReport } from "../node/report.ts";
import { readRunFile } from "../node/run/run-folder.ts";
import { lockRunFolder } from "../node/run/run-lock.ts";
import { type CompareFlags, compareRuns } from "./compare-runs.ts";
import { addConfigOptions } from "./config-options.ts";
import { deviceOption, jsonOption } from "./device.ts";
import { addStepOptions } from "./method-options.ts";
import { givenOptions, listOf } from "./options.ts";
import { addPlanOptions, openPlannedConfig, PLANNED_BATCH } from "./plan.ts";
import {
  contextNote,
  type PlanFlags,
  planAll,
  planExitCode,
  plannedDevice,
  planTable,
  planTitle,
} from "./plan-rows.ts";
import type { Outcome, Session } from "./session.ts";
import type { Report } from "./terminal.ts";
import { addRunOptions, TRAINED_BATCH } from "./training-options.ts";
import { chooseMethods, type MethodChoice, parseVariant, usableVariants, type Variant } from "./variants.ts";

interface CompareOptions extends PlanFlags, Omit<CompareFlags, "data" | "output"> {
  readonly methods?: readonly Variant[];
  readonly data?: readonly string[];
  readonly output?: string;
  readonly context?: readonly number[];
}

const DEFAULT_METHODS = ["ladder", "xladder", "qlora", "qlora+checkpointing", "lora"];
const DEFAULT_CONTEXTS = [512, 2048, 8192, 32768];

const HELP = `
With --data each method trains on the same records in the same order, from the same seed, and is evaluated on the same
held-out records, as sidenet train does it with the same options; each has the folder of a run in --output, beside
results.json. A method that runs out of memory or diverges is left out, and the exit code is 1; Ctrl-C ends after the current
step. Three options are left to train, since they are about one run: --method (here --methods), --memory-timeline, and
--resume: sidenet train --output DIR/METHOD --resume continues a method.

Without --data, or with --device meta, the steps are planned and nothing but a config.json is read, for batches of 1 unless
--data or --batch-size is given. Methods may have suffixes, as in sidenet plan. An xLadder has as many parameters as the
Ladder, within 1 %, unless --side-width is given.

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
    .option("--overwrite", "replace the comparison that --output holds", false);
  addPlanOptions(addRunOptions(command), DEFAULT_CONTEXTS).addOption(deviceOption(DEVICE_NAMES));
  addStepOptions(command, TRAINED_BATCH)
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(compare));
  addConfigOptions(command);
}

async function compare(report: Report, options: CompareOptions, command: Command): Promise<Outcome> {
  const methods = chooseMethods(command, options.methods, DEFAULT_METHODS);
  const { data, output } = options;
  const planned = options.device === "meta" || data === undefined;
  if (data === undefined) refuseOptionsOf(addRunOptions, command, WITHOUT_DATA);
  if (!planned) refuseOptionsOf((plan) => addPlanOptions(plan, DEFAULT_CONTEXTS), command, NO_PLAN);
  if (!planned && output === undefined) {
    throw new SidenetError("C-USAGE", "--data needs --output, a folder for adapters and results.");
  }
  if (output !== undefined) await refuseExisting(output, methods.variants, options.overwrite);
  if (planned)
    return write(report, await comparePlans(report, plannedFlags(options, command), methods), output, true);
  const unlock = await lockRunFolder(output!); // two comparisons would mix their results
  try {
    return await write(
      report,
      await compareRuns(report, { ...options, data, output: output! }, methods),
      output,
      false,
    );
  } finally {
    await unlock();
  }
}

const WITHOUT_DATA =
  "is for training, and without --data the methods are only planned. Add --data, or leave it out.";
const NO_PLAN =
  "is for plans, and with --data the methods are trained, on rows as long as their records. Leave it out, or add --device meta to plan.";

/** Throws `C-USAGE` for a given option of those that `add` defines: it would do nothing. */
function refuseOptionsOf(add: (command: Command) => Command, command: Command, why: string): void {
  const names = add(new Command()).options.map(({ long }) => long);
  const useless = givenOptions(command).find(({ long }) => names.includes(long));
  if (useless) throw new SidenetError("C-USAGE", `${useless.long} ${why}`);
}

/** A plan with `--data` is one of the training that the same command would do; without, it has the defaults of `plan`. */
function plannedFlags(options: CompareOptions, command: Command): CompareOptions {
  const batchSize =
    options.data === undefined && command.getOptionValueSource("batchSize") === "default"
      ? PLANNED_BATCH
      : options.batchSize;
  return { ...options, batchSize, device: options.device === "auto" ? "meta" : options.device };
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

/** Writes what was found, then prints it: whoever reads standard output may close it (`| head`), which ends the process. */
async function write(
  report: Report,
  { text, ...outcome }: Outcome & { readonly text: string },
  output: string | undefined,
  planned: boolean,
): Promise<Outcome> {
  let page = "";
  if (output !== undefined) {
    await makeFolder(output);
    await writeJsonFile(join(output, RESULTS), outcome.json);
    if (!planned) page = `\nreport: ${await writeReport(output)}`;
  }
  report.print(text + page);
  return outcome;
}

async function comparePlans(report: Report, flags: PlanFlags & CompareOptions, methods: MethodChoice) {
  const { model, batchSize: batch_size, gradientAccumulation: gradient_accumulation } = flags;
  const config = await openPlannedConfig(model);
  const device = await plannedDevice(report, flags);
  const variants = usableVariants(report, methods, config, flags, device);
  const results = planAll(config, variants, flags.context ?? DEFAULT_CONTEXTS, flags, device);
  const parts = [planTitle(model, flags, device), planTable(results), contextNote(results, config)];
  return {
    text: parts.filter(Boolean).join("\n\n"),
    json: {
      model,
      planned: true,
      device: deviceName(device),
      batch_size,
      gradient_accumulation,
      results,
    },
    exitCode: planExitCode(results),
  };
}
