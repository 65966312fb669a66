// Compares the allocator's peak memory of a training step with what the operating system or nvidia-smi reports.
//
//   npm run build && node scripts/check-memory.mjs [--device webgpu|wasm] [--model NAME] [--method ladder] [--context 64]
//
// Prints one JSON object. Exits with 1 if the two differ by more than 10 % plus a constant for what the allocator does not
// count: the process itself, compiled kernels and free buffers that are kept for reuse.

import { readFileSync } from "node:fs";
import { measureStep } from "@sidenet/ladder";
import { openModelConfig } from "@sidenet/ladder/node";
import { openDevice, openNodeWasm } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { run } from "./lib/steps.mjs";

const CONSTANT_BYTES = 400e6;

const values = scriptOptions({ device: "webgpu", model: "SmolLM2-1.7B", method: "ladder", context: 64 });

/** The largest resident set of this process so far, in bytes. */
const peakResident = () => process.resourceUsage().maxRSS * 1024;

/** Rows of numbers that nvidia-smi prints for a query; null if it is missing. */
function nvidiaSmi(query) {
  const { stdout, failed } = run("nvidia-smi", [query, "--format=csv,noheader,nounits"]);
  return failed ? null : stdout.split("\n").map((line) => line.split(",").map(Number));
}

/** GPU memory of this process by nvidia-smi, in bytes; null if that is unknown. */
function processBytes() {
  const own = nvidiaSmi("--query-compute-apps=pid,used_memory")?.find(([pid]) => pid === process.pid);
  return own ? own[1] * 2 ** 20 : null;
}

/** Memory in use on the whole GPU, in bytes, for containers that hide processes from nvidia-smi; null if it is missing. */
function gpuBytes() {
  const rows = nvidiaSmi("--query-gpu=memory.used");
  return rows && rows[0][0] * 2 ** 20;
}

ensureRuntimeFolder();
const gpuBefore = gpuBytes();
// Poison writes every buffer, since memory that was never written is not resident.
const device =
  values.device === "wasm" ? await openNodeWasm({ poison: true }) : (await openDevice(values.device)).device;
const config = await openModelConfig(values.model);
const residentBefore = Number(/VmRSS:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
const software = device.kind !== "webgpu" || device.profile.adapterClass === "software";
const f16 = device.profile.f16 && device.kind !== "cpu";
const half = f16 ? "f16" : "f32";
const side = values.method === "ladder" || values.method === "xladder";
const plan = measureStep(device, config, {
  method: { method: values.method },
  storage: { dtype: half, quantizeBlocks: side || values.method === "qlora" },
  memory: { gradientCheckpointing: side, optimizerState: "8bit", savedFormats: { saved: half, rungs: half } },
  batchSize: 1,
  context: values.context,
});
await device.synchronize();
// nvidia-smi has no peak, only the memory now. That is close to the peak, since free buffers are kept for reuse.
const driver = software ? null : (processBytes() ?? (gpuBefore === null ? null : gpuBytes() - gpuBefore));
const reported = software ? peakResident() - residentBefore : driver;
const source = software ? "peak resident set of the process, less the resident set before" : "nvidia-smi";
const difference = reported === null ? null : reported - plan.peakBytes;
const allowed = 0.1 * plan.peakBytes + CONSTANT_BYTES;
const passed = difference === null ? null : Math.abs(difference) <= allowed;
const result = {
  model: values.model,
  method: values.method,
  context: values.context,
  device: device.kind,
  adapter: device.label,
  source,
  peak_bytes: plan.peakBytes,
  peak_bytes_by_category: plan.peakBytesByCategory,
  reported_bytes: reported,
  difference_bytes: difference,
  allowed_bytes: allowed,
  passed,
};
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(passed === false ? 1 : 0));
