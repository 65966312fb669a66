import { type Device, SidenetError } from "@sidenet/tensor";
import type { DeviceName } from "@sidenet/tensor/node";
import { type Command, Option } from "commander";
import { type CaseLocation, type CaseResult, checkCase } from "../check/check.ts";
import { deviceName } from "../device-name.ts";
import type { WeightDType } from "../model/base-storage.ts";
import { findCases } from "../node/golden-folder.ts";
import { deviceOption, jsonOption, peakJson, withDevice } from "./device.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { formatTable } from "./table.ts";
import type { Report } from "./terminal.ts";

interface CheckOptions {
  readonly device: DeviceName;
  readonly dtype: WeightDType;
  readonly filter?: string;
}

const HELP = `
DIR may be the root of the golden cases, a folder in it, or a single case.

Example:
  $ npx sidenet check golden --device webgpu --filter ops/matmul`;

export function defineCheck(program: Command, session: Session): void {
  program
    .command("check")
    .description("Compare a device with a folder of golden cases; exit code 1 if one fails.")
    .argument("<dir>", "folder of golden cases")
    .addOption(deviceOption())
    .addOption(
      new Option("--dtype <type>", "type of inputs and weights").choices(["f32", "f16"]).default("f32"),
    )
    .option("--filter <text>", "only cases whose name contains this")
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(session.action(check));
}

async function check(report: Report, dir: string, options: CheckOptions): Promise<Outcome> {
  const cases = await casesOf(dir, options.filter ?? "");
  return withDevice(options, report, async (device) => {
    const results = await runCases(cases, device, options.dtype, report);
    const count = (status: CaseResult["status"]) =>
      results.filter((result) => result.status === status).length;
    const totals = { passed: count("passed"), failed: count("failed"), skipped: count("skipped") };
    report.print(describe(results));
    report.print(`\n${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`);
    return {
      json: {
        ...totals,
        device: deviceName(device),
        dtype: options.dtype,
        ...peakJson(device),
        cases: results,
      },
      exitCode: totals.failed > 0 ? EXIT.failed : EXIT.ok,
    };
  });
}

/** Throws `L-CHECK-EMPTY` when there is no case, or none of that name. */
async function casesOf(dir: string, filter: string): Promise<CaseLocation[]> {
  const all = await findCases(dir);
  const cases = all.filter(({ folder }) => folder.name.includes(filter));
  if (cases.length > 0) return cases;
  throw new SidenetError(
    "L-CHECK-EMPTY",
    `none of the ${all.length} cases of ${dir} has "${filter}" in its name.`,
  );
}

async function runCases(
  cases: readonly CaseLocation[],
  device: Device,
  dtype: WeightDType,
  report: Report,
): Promise<CaseResult[]> {
  if (dtype === "f16" && !device.profile.f16) {
    throw new SidenetError(
      "T-DTYPE",
      `${device.label} has no f16 storage (the WebGPU feature shader-f16). Use --dtype f32.`,
    );
  }
  const results: CaseResult[] = [];
  for (const [i, location] of cases.entries()) {
    report.progress(`${i + 1} of ${cases.length}: ${location.folder.name}`);
    results.push(await checkCase(location, { device, dtype }));
  }
  return results;
}

/** Counts by group, then every failed and every skipped case by name with its reason. */
function describe(results: readonly CaseResult[]): string {
  const groups = new Map<string, Record<CaseResult["status"], number>>();
  for (const { group, status } of results) {
    const counts = groups.get(group) ?? { passed: 0, failed: 0, skipped: 0 };
    counts[status]++;
    groups.set(group, counts);
  }
  const rows = [...groups].map(([group, { passed, failed, skipped }]) => [group, passed, failed, skipped]);
  const listed = (status: CaseResult["status"]) => {
    const lines = results.filter((result) => result.status === status);
    return lines.length === 0
      ? ""
      : `\n\n${status}:\n${lines.map((r) => `  ${r.name}: ${r.reason}`).join("\n")}`;
  };
  return formatTable(["", "passed", "failed", "skipped"], rows) + listed("skipped") + listed("failed");
}
