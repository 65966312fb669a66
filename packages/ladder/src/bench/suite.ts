/** The benchmark suite: its cases, and the report of a run. */

import { type Device, type OpName, opNames } from "@sidenet/tensor";
import { deviceName } from "../device-name.ts";
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
  /** Called after each row, with the number of rows done and of all rows. */
  readonly onResult?: (result: BenchResult | BenchFailure, done: number, total: number) => void;
}

/** A result, compared with the peak rates of the device. */
export interface BenchRow extends BenchResult {
  /** The rate as a share of the ceiling that limits it, bytes or operations; above 1 if a cache supplies the data or more is read than written. */
  readonly shareOfCeiling: number;
  readonly limit: "copy" | "multiply-add";
}

/** The report of a run; `date` is in ISO 8601. */
export interface BenchReport {
  readonly device: string;
  readonly date: string;
  readonly ceilings: Ceilings;
  readonly results: readonly BenchRow[];
  readonly failures: readonly BenchFailure[];
}

/** The cases of a run, by model, op and tokens. */
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
  // Ops whose extents do not depend on tokens occur once.
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
  return { device: deviceName(device), date, ceilings, results, failures };
}

/** A report with the rows of several runs, all compared with the highest ceilings of these runs. */
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

/** Measures ceilings and every case whose types the device supports. Throws errors that are not a `SidenetError`. */
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
