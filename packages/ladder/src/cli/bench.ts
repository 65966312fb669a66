import { dirname } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, InvalidArgumentError, Option } from "commander";
import { type ComparedRow, compareReports, keepFaster } from "../bench/compare-reports.ts";
import { BENCH_MODELS } from "../bench/shapes.ts";
import { type BenchReport, joinRuns, runSuite, suiteCases } from "../bench/suite.ts";
import { writeFileAtomic } from "../node/atomic-write.ts";
import { type Baseline, readBaseline, renderBenchPage } from "../node/bench-files.ts";
import { makeFolder } from "../node/make-folder.ts";
import { checkOutput } from "../node/output-folder.ts";
import {
  addKernelOptions,
  benchKernel,
  KERNEL_ONLY,
  type KernelOptions,
  SUITE_ONLY,
} from "./bench-kernel.ts";
import { benchTune } from "./bench-tune.ts";
import { addConfigOptions } from "./config-options.ts";
import { deviceOption, jsonOption, withDevice } from "./device.ts";
import { listOf, positiveInteger, positiveNumber, share } from "./options.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";

type Element = "f32" | "f16";

interface BenchCommand extends KernelOptions {
  readonly device: DeviceName;
  readonly models: readonly string[];
  readonly tokens: readonly number[];
  readonly dtypes: readonly Element[];
  readonly only: readonly string[];
  readonly time: number;
  readonly check: boolean;
  readonly compare?: string;
  readonly threshold: number;
  readonly output?: string;
  readonly overwrite?: boolean;
  readonly tune?: boolean;
}

/** What has no meaning beside --tune. */
const TUNE_EXCLUDES = ["kernel", "models", "tokens", "only", "time", "check", "compare", "output"];

/** How often rows that seem to be slower are timed again. */
const CONFIRMATIONS = 2;

const HELP = `
Every op is checked against the CPU reference, then timed at the shapes of a model. Rates are compared with the peak compute
and bandwidth measured in the same run. With f16 among --dtypes, matmuls may round to f16, as in training. The exit code is 1
when an op is wrong, cannot run, or is slower than --compare allows in two further timings as well.

A kernel of your own follows kernels/README.md: storage bindings in group 0, its parameters (if any) in "struct Params" of
scalars and "var<immediate> p: Params;".

Examples:
  $ npx sidenet bench --only matmul softmax --output base.json
  $ npx sidenet bench --only matmul softmax --compare base.json --threshold 0.15
  $ npx sidenet bench --tune
  $ npx sidenet bench --kernel saxpy.wgsl --grid 64 --buffer x=4096 --buffer y=4096 --param a=2 --param n=4096 --flops 8192`;

function oneOf<T extends string>(names: readonly T[]): (text: string) => T {
  return (text) => {
    const found = names.find((name) => name === text);
    if (found !== undefined) return found;
    throw new InvalidArgumentError(`Wanted ${names.join(", ")}.`);
  };
}

function jsonFile(text: string): string {
  if (text.endsWith(".json")) return text;
  throw new InvalidArgumentError("Wanted a file name that ends in .json; the page goes beside it.");
}

const DEFAULTS = {
  models: ["smollm2-135m"],
  tokens: [256],
  dtypes: ["f32", "f16"] as Element[],
  only: [] as string[],
};

export function defineBench(program: Command, session: Session): void {
  const { models, tokens, dtypes, only } = DEFAULTS;
  const names = Object.keys(BENCH_MODELS);
  const command = program
    .command("bench")
    .description("Time every kernel against the device's measured ceilings, and against an earlier run.")
    .addOption(deviceOption())
    .option(
      "--models <names...>",
      `models whose shapes are timed: ${names.join(", ")}`,
      listOf(oneOf(names), models),
      models,
    )
    .option("--tokens <n...>", "number of tokens in the activations", listOf(positiveInteger, tokens), tokens)
    .option(
      "--dtypes <types...>",
      "element types: f32, f16",
      listOf(oneOf<Element>(["f32", "f16"]), dtypes),
      dtypes,
    )
    .addOption(
      new Option("--only <texts...>", "only ops whose names contain one of these")
        .argParser(listOf(String, only))
        .default(only, "all"),
    )
    .option("--time <ms>", "time spent on each op, in milliseconds", positiveNumber, 100)
    .option("--no-check", "do not check results before timing")
    .option("--compare <file>", "results of an earlier run; report what became slower")
    .option("--threshold <share>", "slowdown that counts as a regression: 0.15 is 15 %", share, 0.15)
    .option("--output <file.json>", "write the results, and a page with the same name in .html", jsonFile)
    .option("--overwrite", "replace an existing --output")
    .option("--tune", "find the best tile sizes for this GPU and cache them for all later runs");
  addKernelOptions(command).addOption(jsonOption()).addHelpText("after", HELP).action(session.action(bench));
  addConfigOptions(command);
}

async function bench(report: Report, options: BenchCommand, command: Command): Promise<Outcome> {
  checkOptions(options, command);
  if (options.tune) return tune(options, report);
  const before = options.compare === undefined ? null : await readBaseline(options.compare);
  if (before !== null) checkCommonRows(before, options);
  await prepareOutput(options);
  const { kernel, dtypes } = options;
  const device = kernel !== undefined && options.device === "auto" ? "webgpu" : options.device;
  const dtype = kernel === undefined && dtypes.includes("f16") ? "f16" : "f32";
  return withDevice({ device, dtype }, report, async (opened) => {
    const measure = (only: readonly string[]) =>
      kernel === undefined
        ? benchSuite(opened, { ...options, only }, report)
        : benchKernel(opened, kernel, options, options.time);
    const first = await measure(options.only);
    const result = before === null ? first : await confirm(before, first, options.threshold, measure, report);
    const rows = before === null ? [] : compareReports(before, result, options.threshold);
    const json = before === null ? result : { ...result, comparison: comparisonJson(before, options, rows) };
    if (options.output !== undefined) await writeOutput(options.output, json, result, rows, report); // before `| head` may end it
    report.print(describe(result));
    if (before !== null) report.print(`\n${describeComparison(before, result, rows, options.threshold)}`);
    const bad = result.failures.length > 0 || rows.some(({ verdict }) => verdict === "slower");
    return { json, exitCode: bad ? EXIT.failed : EXIT.ok };
  });
}

/** On the device as training with these --dtypes has it. */
function tune({ device, dtypes }: BenchCommand, report: Report): Promise<Outcome> {
  const on = {
    device: device === "auto" ? "webgpu" : device,
    dtype: dtypes.includes("f16") ? "f16" : "f32",
  } as const;
  return withDevice(on, report, (opened) => benchTune(opened, report));
}

/** Runs again what seems to be slower, since a busy machine makes it seem so: the least time of all runs counts. */
async function confirm(
  before: Baseline,
  first: BenchReport,
  threshold: number,
  measure: (only: readonly string[]) => Promise<BenchReport>,
  report: Report,
): Promise<BenchReport> {
  let result = first;
  for (let i = 0; i < CONFIRMATIONS; i++) {
    const slower = named(compareReports(before, result, threshold), "slower").map(({ name }) => name);
    if (slower.length === 0) break;
    report.note(`timed again, since slower than before: ${slower.join(", ")}`);
    const again = await measure(slower);
    result = joinRuns(keepFaster(result, again), again.ceilings);
  }
  return result;
}

/** Throws `C-USAGE` for options that do nothing together, or rows that do not exist. */
function checkOptions(options: BenchCommand, command: Command): void {
  const given = (names: readonly string[]) =>
    names.find((name) => ["cli", "config"].includes(command.getOptionValueSource(name) ?? ""));
  const refuse = (text: string): never => {
    throw new SidenetError("C-USAGE", text);
  };
  const beside = options.tune ? given(TUNE_EXCLUDES) : undefined;
  if (beside !== undefined) refuse(`--tune excludes --${beside}: it has rows of its own.`);
  const stray = given(options.kernel === undefined ? KERNEL_ONLY : SUITE_ONLY);
  if (stray !== undefined && options.kernel === undefined)
    refuse(`--${stray} belongs to --kernel. Add that.`);
  if (stray === "check") refuse("--kernel excludes --no-check: its results are never checked.");
  if (stray !== undefined) refuse(`--kernel excludes --${stray}, which chooses rows of the suite.`);
  if (options.compare === undefined && given(["threshold"])) {
    refuse("--threshold belongs to --compare. Add that.");
  }
  if (options.output === undefined && options.overwrite) refuse("--overwrite belongs to --output. Add that.");
  if (options.kernel === undefined) {
    for (const part of options.only) {
      if (suiteCases(suiteOptions({ ...options, only: [part] })).length > 0) continue;
      refuse(
        `no row of ${options.dtypes.join(", ")} has "${part}" in its name. Ops are listed in docs/ops.md.`,
      );
    }
  }
}

/** Refuses a comparison that would find nothing slower because it has nothing to compare. Throws `L-BENCH`. */
function checkCommonRows({ results }: Baseline, options: BenchCommand): void {
  const known = new Set(results.map(({ name }) => name));
  if (options.kernel !== undefined || suiteCases(suiteOptions(options)).some(({ name }) => known.has(name)))
    return;
  throw new SidenetError(
    "L-BENCH",
    `${options.compare} has none of the rows that --only, --tokens, --models and --dtypes choose. Its first is "${results[0]?.name}".`,
  );
}

const suiteOptions = ({ models, tokens, dtypes, only, time, check }: BenchCommand) => ({
  models,
  tokens,
  dtypes,
  only,
  check,
  timeMs: time,
});

/** Refuses a place that cannot be written before minutes are spent. Throws `L-OUTPUT`, `L-FILE`. */
async function prepareOutput({ output, overwrite = false, compare }: BenchCommand): Promise<void> {
  if (output === undefined) return;
  const inputs = compare === undefined ? [] : [compare];
  for (const path of [output, pageOf(output)]) await checkOutput(path, "file", overwrite, inputs);
  await makeFolder(dirname(output));
}

const pageOf = (output: string): string => output.replace(/\.json$/, ".html");

async function benchSuite(device: Device, options: BenchCommand, report: Report): Promise<BenchReport> {
  const { dtypes } = options;
  if (dtypes.includes("f16") && !device.profile.f16) {
    if (dtypes.length === 1) {
      throw new SidenetError("T-DTYPE", `${device.label} has no f16 storage. Use --dtypes f32.`);
    }
    report.note(`${device.label} has no f16 storage: rows in f16 are left out.`);
  }
  const result = await runSuite(device, {
    ...suiteOptions(options),
    onResult: ({ name }, done, total) => report.bar(done, total, name),
  });
  report.endBar();
  return result;
}

async function writeOutput(
  output: string,
  json: object,
  result: BenchReport,
  rows: readonly ComparedRow[],
  report: Report,
): Promise<void> {
  await writeFileAtomic(output, `${JSON.stringify(json, null, 1)}\n`);
  await writeFileAtomic(pageOf(output), await renderBenchPage(result, rows));
  report.note(`written: ${output}, ${pageOf(output)}`);
}

const named = (rows: readonly ComparedRow[], verdict: ComparedRow["verdict"]): ComparedRow[] =>
  rows.filter((row) => row.verdict === verdict);

function comparisonJson(before: Baseline, options: BenchCommand, rows: readonly ComparedRow[]) {
  const slower = named(rows, "slower").map(({ name }) => name);
  return { file: options.compare, device: before.device, threshold: options.threshold, slower, rows };
}

const percent = (share: number): string => `${(100 * share).toFixed(0)} %`;

function describe({ ceilings, results, failures }: BenchReport): string {
  const rows = results.map((row) => [
    row.name,
    row.gpuMs === null ? "-" : row.gpuMs.toPrecision(3),
    ...[row.wall.minMs.toPrecision(3), row.wall.medianMs.toPrecision(3), percent(row.wall.spread)],
    ...[row.gflops.toPrecision(3), row.gigabytesPerSecond.toPrecision(3)],
    `${percent(row.shareOfCeiling)} ${row.limit === "copy" ? "copy" : "fma "}`,
  ]);
  const head = ["ms a call", "GPU", "least", "median", "spread", "GFLOP/s", "GB/s", "of ceiling"];
  const { copyGigabytesPerSecond: copy, multiplyAddGflops: fma, multiplyAddBy } = ceilings;
  const text = `ceilings: copy ${copy.toFixed(1)} GB/s, multiply-add ${fma.toFixed(0)} GFLOP/s (${multiplyAddBy})`;
  const failed = failures.map(({ name, error }) => `\nfailed: ${name}: ${error}`);
  return `${formatTable(head, rows)}\n\n${text}${failed.join("")}`;
}

/** Rows that changed by name, the others by number. */
function describeComparison(
  before: Baseline,
  after: BenchReport,
  rows: readonly ComparedRow[],
  threshold: number,
): string {
  const lines = [`against the run of ${before.date}, threshold ${percent(threshold)}, least wall times:`];
  if (before.device !== after.device) lines.push(`that ran on ${before.device}`);
  for (const verdict of ["slower", "faster"] as const) {
    for (const { name, beforeMs, afterMs, ratio } of named(rows, verdict)) {
      const times = `${beforeMs?.toPrecision(3)} -> ${afterMs?.toPrecision(3)} ms, ${ratio?.toFixed(2)} times`;
      lines.push(`  ${verdict}: ${name}: ${times}`);
    }
  }
  for (const { name } of named(rows, "failed")) lines.push(`  failed now: ${name}`);
  const counts = (["same", "slower", "faster", "failed", "missing", "new"] as const)
    .map((verdict) => `${named(rows, verdict).length} ${verdict}`)
    .join(", ");
  return [...lines, counts].join("\n");
}
