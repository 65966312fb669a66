/** The suite: which cases, in which order, and the report of a run. */
import { type Device, type OpName, opNames } from "@sidenet/tensor";
import { type Ceilings, measureCeilings } from "./ceilings.ts";
import { type BenchFailure, type BenchResult, measureCase } from "./measure.ts";
import { BENCH_MODELS, type BenchCase, benchCases } from "./shapes.ts";

/** Which rows of the suite run, and for how long. */
export interface BenchOptions {
  /** Keys of `BENCH_MODELS`. */
  readonly models: readonly string[];
  readonly tokens: readonly number[];
  readonly dtypes: readonly ("f32" | "f16")[];
  /** Cases whose name contains one of these; empty: all. */
  readonly only: readonly string[];
  /** Milliseconds that each case is timed for. */
  readonly timeMs: number;
  readonly check: boolean;
  /** Called after each row, with how many are done of how many. */
  readonly onResult?: (result: BenchResult | BenchFailure, done: number, total: number) => void;
}

/** A result beside what the device can do at best. */
export interface BenchRow extends BenchResult {
  /** Of the ceiling that limits it, bytes or operations; above 1 where a cache serves it. */
  readonly shareOfCeiling: number;
  readonly limit: "copy" | "multiply-add";
}

/** What a run of the suite found; `date` is in ISO 8601. */
export interface BenchReport {
  readonly device: string;
  readonly date: string;
  readonly ceilings: Ceilings;
  readonly results: readonly BenchRow[];
  readonly failures: readonly BenchFailure[];
}

/** Cases of a run, by op, model and tokens. */
export function suiteCases({ models, tokens, dtypes, only }: BenchOptions): BenchCase[] {
  const cases: BenchCase[] = [];
  for (const model of models) {
    for (const op of opNames as readonly OpName[]) {
      for (const count of tokens) {
        for (const dtype of dtypes) cases.push(...benchCases(op, BENCH_MODELS[model], count, dtype));
      }
    }
  }
  const wanted = ({ name }: BenchCase) => only.length === 0 || only.some((part) => name.includes(part));
  // Ops that do not go by tokens come once.
  return [...new Map(cases.filter(wanted).map((item) => [item.name, item])).values()];
}

/** The report of a run whose rows `measure` yields, after the ceilings. Throws what the device and `measure` throw. */
export async function reportOn(
  device: Device,
  timeMs: number,
  measure: () => AsyncIterable<BenchResult | BenchFailure>,
): Promise<BenchReport> {
  const ceilings = await measureCeilings(device, timeMs);
  const results: BenchRow[] = [];
  const failures: BenchFailure[] = [];
  for await (const result of measure()) {
    if ("error" in result) failures.push(result);
    else results.push(besideCeilings(result, ceilings));
  }
  const date = new Date().toISOString().slice(0, 10);
  return { device: `${device.kind}: ${device.label}`, date, ceilings, results, failures };
}

/** A report of rows that several runs have measured: all of them beside the highest ceilings of these runs. */
export function joinRuns(report: BenchReport, others: Ceilings): BenchReport {
  const { ceilings: own } = report;
  const faster = others.multiplyAddGflops > own.multiplyAddGflops ? others : own;
  const copyGigabytesPerSecond = Math.max(own.copyGigabytesPerSecond, others.copyGigabytesPerSecond);
  const ceilings = { ...faster, copyGigabytesPerSecond };
  return { ...report, ceilings, results: report.results.map((row) => besideCeilings(row, ceilings)) };
}

function besideCeilings(result: BenchResult, ceilings: Ceilings): BenchRow {
  const copy = result.gigabytesPerSecond / ceilings.copyGigabytesPerSecond;
  const compute = result.gflops / ceilings.multiplyAddGflops;
  return compute > copy
    ? { ...result, shareOfCeiling: compute, limit: "multiply-add" }
    : { ...result, shareOfCeiling: copy, limit: "copy" };
}

/** Measures ceilings and every case that the device has types for. Throws what the device throws beyond refusals. */
export function runSuite(device: Device, options: BenchOptions): Promise<BenchReport> {
  const cases = suiteCases(options).filter(
    ({ operands }) => device.profile.f16 || Object.values(operands).every(({ dtype }) => dtype !== "f16"),
  );
  return reportOn(device, options.timeMs, async function* () {
    for (const [i, benchCase] of cases.entries()) {
      const result = await measureCase(device, benchCase, options);
      options.onResult?.(result, i + 1, cases.length);
      yield result;
    }
  });
}
