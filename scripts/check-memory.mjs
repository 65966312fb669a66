// Compare the allocator's account of a training step with what the process or the driver reports.
//
//   npm run build && node scripts/check-memory.mjs [--device webgpu|wasm] [--model NAME] [--method ladder] [--context 64]
//
// Prints one JSON object. Exit code 1 when they differ by more than 10 % plus a constant: the process, compiled kernels and
// the pool of free buffers, which the account does not hold.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { measureStep } from "@sidenet/ladder";
import { openModelConfig } from "@sidenet/ladder/node";
import { openDevice, openNodeWasm } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";

const CONSTANT_BYTES = 400e6;

const values = scriptOptions({ device: "webgpu", model: "SmolLM2-1.7B", method: "ladder", context: 64 });

/** The most that the process has had in memory so far, in bytes. */
const highestResident = () => process.resourceUsage().maxRSS * 1024;

/** What NVIDIA's driver says that this process holds, in bytes; null without one. */
function driverBytes() {
  const args = ["--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"];
  const { status, stdout } = spawnSync("nvidia-smi", args, { encoding: "utf8" });
  if (status !== 0) return null;
  const own = stdout.split("\n").map((line) => line.split(",").map(Number));
  const found = own.find(([pid]) => pid === process.pid);
  return found ? found[1] * 2 ** 20 : null;
}

/** Memory in use on the whole GPU, in bytes: where a container hides processes from each other. */
function gpuBytes() {
  const args = ["--query-gpu=memory.used", "--format=csv,noheader,nounits"];
  const { status, stdout } = spawnSync("nvidia-smi", args, { encoding: "utf8" });
  return status === 0 ? Number(stdout.split("\n")[0]) * 2 ** 20 : null;
}

ensureRuntimeFolder();
const gpuBefore = gpuBytes();
// Memory that nobody has written is not resident: poison writes all of it.
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
// Buffers are kept for reuse within a limit, so the driver's figure afterwards is close to its highest only for resident
// memory; a process's own highest is exact.
const driver = software ? null : (driverBytes() ?? (gpuBefore === null ? null : gpuBytes() - gpuBefore));
const reported = software ? highestResident() - residentBefore : driver;
const source = software ? "highest resident set of the process, less what it was before" : "nvidia-smi";
const difference = reported === null ? null : reported - plan.peakBytes;
const allowed = 0.1 * plan.peakBytes + CONSTANT_BYTES;
const passed = difference === null ? null : Math.abs(difference) <= allowed;
const result = {
  ...{ model: values.model, method: values.method, context: values.context },
  ...{ device: device.kind, adapter: device.label, source },
  ...{ peak_bytes: plan.peakBytes, peak_bytes_by_category: plan.peakBytesByCategory },
  ...{ reported_bytes: reported, difference_bytes: difference, allowed_bytes: allowed, passed },
};
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(passed === false ? 1 : 0));
