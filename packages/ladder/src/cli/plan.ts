/** `sidenet plan`: what a training step would take, from a model's configuration alone. */

import { SidenetError } from "@sidenet/tensor";
import { DEVICE_NAMES } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import { deviceName } from "../device-name.ts";
import { METHODS } from "../methods/adapter.ts";
import { contextLimit, type ModelConfig } from "../model/config.ts";
import { bundledConfigs } from "../node/bundled-configs.ts";
import { writeTimeline } from "../node/memory-timeline.ts";
import { openModelConfig } from "../node/open-model.ts";
import { BINDING_LIMITS, longestContext, planStep } from "../training/plan.ts";
import { addConfigOptions } from "./config-options.ts";
import { deviceOption, jsonOption } from "./device.ts";
import { addStepOptions } from "./method-options.ts";
import { byteSize, listOf, positiveInteger } from "./options.ts";
import {
  ADAPTER_CLASSES,
  contextNote,
  type FailedRow,
  failedRow,
  isPlanned,
  type PlanFlags,
  type PlannedDevice,
  type PlanRow,
  planAll,
  planExitCode,
  planJson,
  plannedDevice,
  planTable,
  planTitle,
  stepOf,
} from "./plan-rows.ts";
import type { Outcome, Session } from "./session.ts";
import { formatBytes, formatCount, formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";
import { chooseMethods, parseVariant, usableVariants, type Variant } from "./variants.ts";

interface PlanCommand extends PlanFlags {
  readonly model: string;
  readonly method?: readonly Variant[];
  readonly context?: readonly number[];
  readonly memory?: number;
  readonly memoryTimeline?: string;
}

const HELP = `
A plan executes the training step on a device without data, so the planned peak is that of a run, to the byte. Only a
config.json is read. Suffixes switch memory options for one method: qlora+checkpointing, ladder+8bit, ladder+nf4-ends (also
embeddings and lm_head in NF4), ladder+int8-rungs, ladder+f32, ladder+no-checkpointing.

--device meta plans for any GPU of --adapter-class; webgpu, wasm and cpu plan for those devices of this machine. Contexts
longer than the model's own are planned too, and marked with an asterisk.

Examples:
  $ npx sidenet plan --model Qwen2.5-7B --context 2048 --batch-size 1
  $ npx sidenet plan --model path/to/config.json --method ladder qlora+checkpointing --memory 12GB`;

export function definePlan(program: Command, session: Session): void {
  const command = program
    .command("plan")
    .description("Plan the peak memory and FLOPs of a training step from a config.json alone.")
    .requiredOption(
      "--model <path>",
      "folder or config.json, .gguf or .safetensors file, hub id, or a bundled name (Qwen2.5-7B)",
    )
    .option(
      "--method <names...>",
      "methods to plan, with optional suffixes (default: all)",
      listOf(parseVariant),
    )
    .option(
      "--memory <size>",
      "find the longest context that fits into this memory, such as 12GB or 16GiB, for each method",
      byteSize,
    )
    .option("--memory-timeline <file>", "live bytes by category after each op, as JSON lines");
  addPlanOptions(command, DEFAULT_CONTEXTS).addOption(deviceOption(DEVICE_NAMES).default("meta"));
  addStepOptions(command, PLANNED_BATCH)
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(plan));
  addConfigOptions(command);
}

/** Rows per batch of a plan, unless given. */
export const PLANNED_BATCH = 1;

const DEFAULT_CONTEXTS = [2048];

/** What only a plan has, beside the options of its steps (`addStepOptions`). */
export function addPlanOptions(command: Command, contexts: readonly number[]): Command {
  return command
    .option(
      "--context <n...>",
      `tokens per row of a plan (default: ${contexts.join(" ")})`,
      listOf(positiveInteger),
    )
    .option("--prefix-tokens <n>", "tokens of a prefix before each row (train --prefix)", positiveInteger)
    .addOption(
      new Option("--adapter-class <kind>", "for --device meta: the kind of GPU")
        .choices(ADAPTER_CLASSES)
        .default(ADAPTER_CLASSES[0]),
    )
    .option(
      "--binding-limit <size>",
      "largest storage binding of the GPU (meta: 2 GiB, as on NVIDIA)",
      byteSize,
    );
}

/** The config of a model to plan. Throws as `openModelConfig`; the error for an unknown name lists the bundled ones. */
export async function openPlannedConfig(model: string): Promise<ModelConfig> {
  try {
    return await openModelConfig(model);
  } catch (error) {
    if (!(error instanceof SidenetError) || error.code !== "L-MODEL-MISSING") throw error;
    const names = (await bundledConfigs()).join(", ");
    throw new SidenetError(error.code, `${error.text} Bundled are ${names}.`);
  }
}

/** Every method; QLoRA also with gradient checkpointing, its usual form in other programs. */
const DEFAULT_VARIANTS = METHODS.flatMap((name) =>
  name === "qlora" ? [name, "qlora+checkpointing"] : [name],
);

async function plan(report: Report, flags: PlanCommand, command: Command): Promise<Outcome> {
  const methods = chooseMethods(command, flags.method, DEFAULT_VARIANTS);
  const contexts = flags.context ?? DEFAULT_CONTEXTS;
  const config = await openPlannedConfig(flags.model);
  const device = await plannedDevice(report, flags);
  const variants = usableVariants(report, methods, config, flags, device);
  const rows =
    flags.memory !== undefined && !flags.context ? [] : planAll(config, variants, contexts, flags, device);
  report.print(planTitle(flags.model, flags, device));
  if (rows.length > 0) {
    report.print(`\n${planTable(rows)}`);
    printIf(report, contextNote(rows, config));
    printIf(report, describeBindings(rows.filter(isPlanned)));
  }
  const budget = flags.memory === undefined ? null : fitAll(config, variants, flags, device, flags.memory);
  if (budget) printBudget(report, budget, config);
  if (flags.memoryTimeline !== undefined) {
    const [variant, context] = [variants[0], budget?.longest.find(isFitted)?.context ?? contexts[0]];
    const { timeline } = planStep(config, { ...stepOf(variant, flags, device), context, timeline: true });
    await writeTimeline(flags.memoryTimeline, timeline);
    report.note(`${flags.memoryTimeline}: ${variant.name} at ${context} tokens, ${timeline.length} ops`);
  }
  const alone = rows.length === 1 ? rows[0] : {};
  const json = { ...alone, model: flags.model, device: deviceName(device) };
  const { batchSize: batch_size, gradientAccumulation: gradient_accumulation } = flags;
  return {
    json: { ...json, batch_size, gradient_accumulation, plans: rows, ...budget },
    exitCode: planExitCode(rows),
  };
}

function printIf(report: Report, text: string): void {
  if (text !== "") report.print(`\n${text}`);
}

/** Which buffers one binding of smaller adapters does not hold: they go through in windows there. */
function describeBindings(rows: readonly PlanRow[]): string {
  const sizes = new Map<string, number>();
  for (const { label, size_bytes } of rows.flatMap((row) => row.large_buffers)) {
    sizes.set(label, Math.max(sizes.get(label) ?? 0, size_bytes));
  }
  const lines = BINDING_LIMITS.map((limit) => {
    const over = [...sizes].filter(([, size]) => size > limit).sort(([, a], [, b]) => b - a);
    const shown = over.slice(0, 3).map(([label, size]) => `${label} (${formatBytes(size)})`);
    if (over.length > 3) shown.push(`${over.length - 3} more`);
    const name = limit >= 2 ** 30 ? `${limit / 2 ** 30} GiB` : `${limit / 2 ** 20} MiB`;
    return `buffers past a binding of ${name}: ${shown.join(", ") || "none"}`;
  });
  return lines.join("\n");
}

interface Fitted extends PlanRow {
  /** The longest context that fits and that the model was made for. */
  readonly longest_context: number;
  /** The longest that fits, whatever the model was made for. */
  readonly memory_context: number;
}

/** A method that does not fit, and what it takes at 64 tokens; null where it cannot be planned at all. */
interface Unfitted extends FailedRow {
  readonly least_bytes: number | null;
}

interface Budget {
  readonly memory_bytes: number;
  readonly longest: readonly (Fitted | Unfitted)[];
  /** The longest context; of several, the fewest operations a token. */
  readonly best: { readonly method: string; readonly context: number } | null;
}

const isFitted = (row: Fitted | Unfitted): row is Fitted => !("error" in row);

function fitAll(
  config: ModelConfig,
  variants: readonly Variant[],
  flags: PlanFlags,
  device: PlannedDevice,
  memory: number,
): Budget {
  const longest = variants.map((variant): Fitted | Unfitted => {
    const fit = longestContext(config, stepOf(variant, flags, device), memory);
    if (fit.plan === null) {
      const least = Number.isFinite(fit.leastBytes) ? fit.leastBytes : null;
      const needs = least === null ? "" : `: it takes ${formatBytes(least)} at 64 tokens`;
      const text = `${variant.name} does not fit in ${formatBytes(memory)}${needs}.`;
      return { ...failedRow(variant, 0, new SidenetError("C-NO-FIT", text)), least_bytes: least };
    }
    const row = planJson(variant, fit.usable, fit.plan, config, flags);
    return { ...row, longest_context: fit.usable, memory_context: fit.context };
  });
  const [best = null] = longest
    .filter(isFitted)
    .sort((a, b) => b.context - a.context || a.flops / a.tokens - b.flops / b.tokens);
  return { memory_bytes: memory, longest, best: best && { method: best.method, context: best.context } };
}

const NOTHING_FITS =
  "Nothing fits. To save memory, store embeddings and lm_head in NF4 too (--quantize-ends), or use a smaller model: see docs/memory.md.";

function printBudget(report: Report, { memory_bytes, longest, best }: Budget, config: ModelConfig): void {
  const rows = longest.map((row) =>
    isFitted(row)
      ? [
          row.method,
          row.longest_context,
          row.memory_context,
          formatBytes(row.peak_bytes),
          formatCount(row.flops),
        ]
      : [
          row.method,
          "-",
          "-",
          row.least_bytes === null ? row.error.code : `> ${formatBytes(row.least_bytes)}`,
          "",
        ],
  );
  const head = ["method", "longest context", "memory alone holds", "peak", "FLOPs a step"];
  report.print(`\nIn ${formatBytes(memory_bytes)}:\n${formatTable(head, rows)}`);
  report.print(`The model's own context is ${contextLimit(config)}.`);
  if (best) report.print(`The longest context is that of ${best.method}: ${best.context} tokens.`);
  else report.print(NOTHING_FITS);
}
