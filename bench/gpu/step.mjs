// Times training steps of a model with random weights. Prints seconds, tokens/s, and memory by sidenet's allocator and by
// nvidia-smi.
//
//   node bench/gpu/step.mjs --model qwen2.5-7b --method ladder --context 2048 [--batch 1] [--steps 3] [--device webgpu]
//     [--dtype f16] [--no-quantize] [--profile] [--as-gpu] [--null] [--no-repeat]
//
// --model is tiny, small, or a model that `sidenet plan` knows. --as-gpu chooses a GPU's kernels on a software driver: with few
// tokens, the CPU time of the host is then what a GPU's step costs there. --null computes nothing, so that the host's time is all
// of it. --no-repeat runs the model's code in every step.

import { spawn } from "node:child_process";
import { makeAdapter, Trainer } from "@sidenet/ladder";
import { WebGpuDevice } from "@sidenet/tensor";
import { scriptOptions } from "../../scripts/lib/options.mjs";
import { median, threadCpuMs } from "../shared.mjs";
import { randomDecoder } from "./models.mjs";
import { finish, open, openNull } from "./process.mjs";

const options = scriptOptions(
  {
    device: "webgpu",
    model: "smollm2-135m",
    method: "ladder",
    context: 512,
    batch: 1,
    steps: 3,
    dtype: "f16",
    "no-quantize": false,
    profile: false,
    "as-gpu": false,
    null: false,
    "no-repeat": false,
  },
  { positive: ["context", "batch", "steps"] },
);

/** Watches the GPU memory in use by nvidia-smi, five times a second. `mib` is its peak; null without nvidia-smi. */
function watchDriver() {
  let peak = null;
  const query = ["--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"];
  const child = spawn("nvidia-smi", query, { stdio: ["ignore", "pipe", "ignore"] });
  child.on("error", () => {}); // there is no nvidia-smi
  child.stdout?.on("data", (data) => {
    for (const line of String(data).trim().split("\n")) {
      const mib = Number(line);
      if (Number.isFinite(mib)) peak = Math.max(peak ?? 0, mib);
    }
  });
  return {
    get mib() {
      return peak;
    },
    reset: () => {
      peak = null;
    },
    stop: () => child.kill(),
  };
}

function makeBatch(vocabSize, batchSize, length) {
  const inputIds = Int32Array.from({ length: batchSize * length }, (_, i) => (i * 7919) % vocabSize);
  return { inputIds, labels: inputIds, attentionMask: null, batchSize, length };
}

const driver = watchDriver();
const openOptions = { precision: options.dtype, ...(options["as-gpu"] && { adapterClass: "discrete" }) };
const device = options.null ? await openNull(openOptions) : await open(options.device, openOptions);
const dtype = device.profile.f16 ? options.dtype : "f32";
const started = performance.now();
const decoder = await randomDecoder(device, options.model, { quantize: !options["no-quantize"], dtype });
const loadSeconds = (performance.now() - started) / 1000;
const weightBytes = device.memory.liveBytes;
const mib = (bytes) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
console.error(`${options.model}: ${mib(weightBytes)} of weights made in ${loadSeconds.toFixed(1)} s`);

const adapter = makeAdapter({ method: options.method }, decoder, options.model);
if (options["no-repeat"]) Object.defineProperty(adapter, "isRepeatable", { value: false });
// As in `sidenet train`, saved activations and rungs have the dtype of the weights.
const savedFormats = { saved: dtype, rungs: dtype };
const trainer = new Trainer(decoder, adapter, { learningRate: () => 1e-4, savedFormats });
const { batch: batchSize, context: length } = options;
const batch = makeBatch(decoder.config.vocabSize, batchSize, length);
const losses = [];
const seconds = [];
const hostMs = [];
const before = device instanceof WebGpuDevice ? device.statistics() : null;
device.memory.resetPeak();
driver.reset();
const flopsBefore = device.flops;
for (let step = 0; step <= options.steps; step++) {
  const [from, cpuFrom] = [performance.now(), threadCpuMs()];
  losses.push((await trainer.step(batch)).loss);
  const elapsed = (performance.now() - from) / 1000;
  const cpu = threadCpuMs() - cpuFrom;
  if (step > 0) {
    seconds.push(elapsed);
    hostMs.push(cpu);
  }
  console.error(
    `step ${step}: loss ${losses.at(-1).toFixed(4)}, ${elapsed.toFixed(3)} s, host ${cpu.toFixed(0)} ms`,
  );
}
const stepSeconds = median(seconds);
const flops = (device.flops - flopsBefore) / (options.steps + 1);
const { peakBytes, byCategory } = device.memory.peak();
const after = device instanceof WebGpuDevice ? device.statistics() : null;
let profile = null;
if (options.profile && device instanceof WebGpuDevice && device.gpu.features.has("timestamp-query")) {
  device.startProfile();
  const from = performance.now();
  await trainer.step(batch);
  const wallMs = performance.now() - from;
  const kernels = await device.stopProfile();
  const busyMs = kernels.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0);
  profile = { wallMs, busyMs, kernels: kernels.slice(0, 30) };
}
await new Promise((resolve) => setTimeout(resolve, 300)); // until nvidia-smi's last sample
const result = {
  model: options.model,
  method: options.method,
  context: length,
  batch: batchSize,
  dtype,
  quantized: !options["no-quantize"],
  device: `${device.kind}: ${device.label}`,
  loss: losses,
  seconds_per_step: stepSeconds,
  host_ms_per_step: median(hostMs),
  tokens_per_second: (batchSize * length) / stepSeconds,
  flops,
  tflops: flops / stepSeconds / 1e12,
  peak_bytes: peakBytes,
  peak_bytes_by_category: byCategory,
  weight_bytes: weightBytes,
  load_seconds: loadSeconds,
  driver_peak_mib: driver.mib,
  buffer_bytes: after?.bufferBytes ?? null,
  free_bytes: after?.freeBytes ?? null,
  saved_format: dtype,
  submits_per_step: after && (after.submits - before.submits) / (options.steps + 1),
  dispatches_per_step: after && (after.dispatches - before.dispatches) / (options.steps + 1),
  gpu_busy_share: profile && Math.min(1, profile.busyMs / 1000 / stepSeconds),
  // An upper bound: in the profiled step each kernel has its own pass, which adds idle time.
  gpu_idle_share: profile && Math.max(0, 1 - profile.busyMs / profile.wallMs),
  profile,
};
driver.stop();
console.error(
  `${options.model} ${options.method}, ${batchSize} x ${length} tokens: ${stepSeconds.toFixed(3)} s a step, ` +
    `${result.tokens_per_second.toFixed(0)} tokens/s, ${result.tflops.toFixed(2)} TFLOP/s, peak ${mib(peakBytes)}` +
    `${driver.mib === null ? "" : `, driver ${driver.mib} MiB`}`,
);
if (profile) {
  for (const { kernel, dispatches, elapsedMs } of profile.kernels.slice(0, 12))
    console.error(`  ${kernel.padEnd(28)} ${String(dispatches).padStart(6)} x  ${elapsedMs.toFixed(1)} ms`);
  console.error(
    `  GPU busy ${profile.busyMs.toFixed(0)} ms of a step of ${(1000 * stepSeconds).toFixed(0)} ms; idle between kernels for ` +
      `${(100 * result.gpu_idle_share).toFixed(0)} % of the profiled one (${profile.wallMs.toFixed(0)} ms)`,
  );
}
finish(result, losses.every(Number.isFinite) ? 0 : 1);
