import { readFileSync } from "node:fs";
import { arch, platform, release } from "node:os";
import { type AdapterReport, SidenetError } from "@sidenet/tensor";
import { chooseDevice, type DeviceName, describeNodeWebGpu } from "@sidenet/tensor/node";
import type { Command } from "commander";
import { deviceOption, ensureRuntimeFolder, jsonOption, withDevice } from "./device.ts";
import { installAdvice, type LinuxRelease, parseOsRelease } from "./install-advice.ts";
import { EXIT, type Outcome, type Session } from "./session.ts";
import { type SmokeResult, smokeTest } from "./smoke.ts";

const HELP = `
Also computes a small test on the device and compares it with the CPU reference; the exit code is 1 if that fails.

Example:
  $ npx sidenet doctor`;

/** Optional WebGPU features: 16-bit weights, faster reductions and matmuls, timings of single kernels. */
const FEATURES = ["shader-f16", "subgroups", "timestamp-query"];

const LIMITS = {
  maxStorageBufferBindingSize: "largest binding",
  maxBufferSize: "largest buffer",
  maxComputeWorkgroupStorageSize: "workgroup memory",
  maxStorageBuffersPerShaderStage: "storage bindings",
  maxImmediateSize: "immediates",
} as const;

/** Bytes of kernel parameters; an adapter with fewer takes them through a uniform. */
const IMMEDIATE_BYTES = 64;

interface Computed {
  readonly device: DeviceName;
  readonly smoke: readonly SmokeResult[];
  readonly problem: string | null;
}

interface Diagnosis {
  readonly ok: boolean;
  readonly sidenet: string;
  readonly node: string;
  readonly platform: string;
  readonly adapter: AdapterReport | null;
  /** Why there is no adapter. */
  readonly problem: string | null;
  readonly features: Readonly<Record<string, boolean>>;
  readonly limits: Readonly<Record<string, number>>;
  /** What `--device auto` means here, and why. */
  readonly auto: { readonly device: DeviceName; readonly reason: string };
  /** What was tried out, and how that went. */
  readonly computed: Computed;
  readonly advice: readonly string[];
}

export function defineDoctor(program: Command, session: Session, version: string): void {
  program
    .command("doctor")
    .description("Show the GPU adapter, its driver, limits and features, test it, and say what is missing.")
    .addOption(deviceOption())
    .addOption(jsonOption())
    .addHelpText("after", HELP)
    .action(
      session.action(async (report, options: { device: DeviceName }) => {
        const diagnosis = await diagnose(options.device, version);
        report.print(describe(diagnosis));
        return { json: diagnosis, exitCode: diagnosis.ok ? EXIT.ok : EXIT.failed } satisfies Outcome;
      }),
    );
}

async function diagnose(name: DeviceName, version: string): Promise<Diagnosis> {
  const linux = readRelease();
  const found = await findAdapter();
  const adapter = found instanceof SidenetError ? null : found;
  const has = (feature: string) => adapter?.features.includes(feature) ?? false;
  const computed = await compute(name);
  return {
    ok: computed.problem === null && computed.smoke.every((result) => result.passed),
    sidenet: version,
    node: process.version,
    platform: `${platform()} ${arch()}, ${linux?.name || release()}`,
    adapter,
    problem: found instanceof SidenetError ? found.message : null,
    features: {
      ...Object.fromEntries(FEATURES.map((feature) => [feature, has(feature)])),
      immediates: (adapter?.limits.maxImmediateSize ?? 0) >= IMMEDIATE_BYTES,
    },
    limits: Object.fromEntries(Object.keys(LIMITS).map((limit) => [limit, adapter?.limits[limit] ?? 0])),
    auto: chooseDevice(adapter),
    computed,
    advice: advise(found, computed, linux),
  };
}

async function findAdapter(): Promise<AdapterReport | SidenetError> {
  ensureRuntimeFolder();
  try {
    return await describeNodeWebGpu();
  } catch (error) {
    if (error instanceof SidenetError && ["T-NO-DAWN", "T-NO-ADAPTER"].includes(error.code)) return error;
    throw error; // such as SIDENET_DAWN_FEATURES that are no names: no driver would cure that
  }
}

/** Opens the device and tries it out. An error of the device is a finding, not an end. */
async function compute(name: DeviceName): Promise<Computed> {
  let kind = name;
  try {
    return await withDevice(name, null, async (device) => {
      kind = device.kind;
      return { device: kind, smoke: await smokeTest(device), problem: null };
    });
  } catch (error) {
    if (!(error instanceof SidenetError)) throw error;
    return { device: kind, smoke: [], problem: error.message };
  }
}

function readRelease(): LinuxRelease | null {
  try {
    return parseOsRelease(readFileSync("/etc/os-release", "utf8"));
  } catch {
    return null; // not Linux, or one without the file
  }
}

function advise(
  adapter: AdapterReport | SidenetError,
  computed: Computed,
  linux: LinuxRelease | null,
): string[] {
  if (adapter instanceof SidenetError) {
    return [
      "WebGPU has no adapter, so everything runs on the processor, by WebAssembly.",
      ...(adapter.code === "T-NO-ADAPTER" ? installAdvice(platform(), linux) : []), // no driver makes Dawn load
    ];
  }
  const advice: string[] = [];
  if (adapter.software) {
    advice.push(
      "The adapter is a software driver. If there is a graphics card, install its Vulkan driver; it is then found automatically.",
    );
  }
  if (!adapter.features.includes("shader-f16")) {
    advice.push(
      "Without shader-f16 each weight takes four bytes instead of two. A newer driver may have it.",
    );
  }
  const wrong = computed.smoke.filter((result) => !result.passed).map((result) => result.dtype);
  if (wrong.length > 0) {
    advice.push(
      `Results in ${wrong.join(" and ")} are wrong: update the driver, or use --device cpu. \`sidenet check\` tells more.`,
    );
  }
  return advice;
}

const bytes = (n: number): string =>
  n >= 2 ** 30 ? `${(n / 2 ** 30).toFixed(1)} GiB` : `${n / 2 ** 20} MiB`;

function describeLimit(name: string, value: number): string {
  if (name === "maxStorageBuffersPerShaderStage") return `${value}`;
  return value >= 2 ** 20 ? bytes(value) : value >= 2 ** 10 ? `${value / 2 ** 10} KiB` : `${value} bytes`;
}

function describe(d: Diagnosis): string {
  const lines: string[] = [];
  const line = (label: string, text: string) => lines.push(`${label.padEnd(14)}${text}`);
  line("sidenet", `${d.sidenet}, Node ${d.node}, ${d.platform}`);
  if (d.adapter) {
    const { description, driver, vendor, software } = d.adapter;
    line("adapter", `${description}, ${vendor}, ${software ? "software" : "hardware"}`);
    line("driver", driver);
    const named = (feature: string, has: boolean) => `${feature} ${has ? "yes" : "no"}`;
    line(
      "features",
      Object.entries(d.features)
        .map(([feature, has]) => named(feature, has))
        .join(", "),
    );
    const limits = Object.entries(LIMITS).map(
      ([limit, text]) => `${text} ${describeLimit(limit, d.limits[limit])}`,
    );
    line("limits", limits.join(", "));
  } else {
    line("adapter", `none. ${d.problem}`);
  }
  line("auto", `${d.auto.device} (${d.auto.reason})`);
  const { device, smoke, problem } = d.computed;
  for (const { dtype, passed, error, seconds } of smoke) {
    const size = error === null ? "a value is not finite" : `relative error ${error.toExponential(1)}`;
    const what = `rmsNorm and linear in ${dtype} on ${device}`;
    line("computed", `${passed ? "OK" : "FAILED"}: ${what}, ${size}, ${seconds.toFixed(1)} s`);
  }
  if (problem) line("computed", `FAILED on ${device}: ${problem}`);
  return [...lines, ...(d.advice.length > 0 ? ["", ...d.advice] : [])].join("\n");
}
