/** Times a case: wall time, and GPU time by timestamps if the adapter has them. */
import {
  type Device,
  type KernelTime,
  rowOf,
  SidenetError,
  sizeBytes,
  sizeOf,
  type Tensor,
  WebGpuDevice,
} from "@sidenet/tensor";
import { Bench } from "tinybench";
import { checkCase, makeOperands } from "./operands.ts";
import type { BenchCase } from "./shapes.ts";

/** Times of one call over several batches, in milliseconds. */
export interface Timing {
  readonly minMs: number;
  readonly medianMs: number;
  /** Median distance from the median, as a share of it. */
  readonly spread: number;
  readonly samples: number;
}

/** The measurement of one case; times are in milliseconds per call. */
export interface BenchResult {
  readonly name: string;
  readonly op: string;
  /** Wall time, where the calls of a batch share submission and waiting. */
  readonly wall: Timing;
  /** GPU time by timestamps, the least of a few batches; null without them. */
  readonly gpuMs: number | null;
  readonly dispatches: number;
  readonly flops: number;
  /** Bytes of operands read and results written, each once, what is updated in place twice: the minimum that the op must move. */
  readonly bytes: number;
  readonly gflops: number;
  readonly gigabytesPerSecond: number;
}

/** A case that could not be timed, and why. */
export interface BenchFailure {
  readonly name: string;
  readonly op: string;
  readonly error: string;
}

interface MeasureOptions {
  /** Milliseconds that a case is timed for. */
  readonly timeMs: number;
  /** Whether results are checked first. */
  readonly check: boolean;
}

/** The calls of a batch take about this long, so that waiting for the device is a small part of it. */
const BATCH_MS = 20;
const MAX_CALLS = 200;

/** Times `batch`, which makes `calls` calls and waits for them. */
async function timeBatches(batch: () => Promise<void>, calls: number, timeMs: number): Promise<Timing> {
  const bench = new Bench({
    time: timeMs,
    iterations: 3,
    warmup: false, // callers have run it
    throws: true,
  });
  bench.add("case", batch);
  const [task] = await bench.run();
  const result = task.result;
  if (!("latency" in result)) throw new Error(`the benchmark ended as ${result.state}`);
  const { min, p50, mad, samplesCount } = result.latency;
  return { minMs: min / calls, medianMs: p50 / calls, spread: mad / p50, samples: samplesCount };
}

/**
 * A GPU lowers its clock while the host prepares operands or checks results, and raises it again only after some time of work:
 * on an H200, calls after two seconds of preparation took 2 to 4 times as long as others for the first quarter of a second.
 */
const WARM_MS = 300;

/** The number of calls of a batch, measured after a call that compiles and, by batch after batch, `warmMs` of work. */
export async function calibrate(device: Device, call: () => void, warmMs = 0): Promise<number> {
  call();
  await device.synchronize();
  const warmFrom = performance.now();
  let calls = 1;
  do {
    const started = performance.now();
    for (let i = 0; i < calls; i++) call();
    await device.synchronize();
    const one = (performance.now() - started) / calls;
    calls = Math.max(1, Math.min(MAX_CALLS, Math.floor(BATCH_MS / Math.max(one, 0.01))));
  } while (performance.now() - warmFrom < warmMs);
  return calls;
}

/** Batches of which the fastest counts: one alone may have been slowed by other load, several times on a busy software driver. */
const GPU_BATCHES = 3;

/** GPU time of one call in milliseconds, and its number of dispatches. */
async function gpuTime(
  device: Device,
  call: () => void,
  calls: number,
): Promise<{ gpuMs: number | null; dispatches: number }> {
  if (!(device instanceof WebGpuDevice)) return { gpuMs: null, dispatches: 0 };
  const before = device.statistics().dispatches;
  call();
  await device.synchronize();
  const dispatches = device.statistics().dispatches - before;
  if (!device.gpu.features.has("timestamp-query")) return { gpuMs: null, dispatches };
  let gpuMs = Number.POSITIVE_INFINITY;
  for (let batch = 0; batch < GPU_BATCHES; batch++) {
    device.startProfile();
    let kernels: KernelTime[] = [];
    try {
      for (let i = 0; i < calls; i++) call();
    } finally {
      kernels = await device.stopProfile(); // also where a call fails: the next benchmark starts another
    }
    gpuMs = Math.min(gpuMs, kernels.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / calls);
  }
  return { gpuMs, dispatches };
}

/** Times of a call, and its number of dispatches. */
export async function timeOf(
  device: Device,
  call: () => void,
  timeMs: number,
): Promise<Pick<BenchResult, "wall" | "gpuMs" | "dispatches">> {
  const isGpu = device instanceof WebGpuDevice && device.profile.adapterClass !== "software";
  const calls = await calibrate(device, call, isGpu ? WARM_MS : 0);
  const batch = async () => {
    for (let i = 0; i < calls; i++) call();
    await device.synchronize();
  };
  const wall = await timeBatches(batch, calls, timeMs);
  return { wall, ...(await gpuTime(device, call, calls)) };
}

/** A call to time, and the minimum of bytes and FLOPs that it needs. */
interface TimedCall {
  readonly name: string;
  readonly op: string;
  readonly call: () => void;
  readonly flops: number;
  readonly bytes: number;
}

/** Times a call. Throws what the device throws. */
export async function timeCall(
  device: Device,
  { name, op, call, flops, bytes }: TimedCall,
  timeMs: number,
): Promise<BenchResult> {
  const { wall, gpuMs, dispatches } = await timeOf(device, call, timeMs);
  const seconds = (gpuMs || wall.medianMs) / 1000; // a GPU time of 0 is below the clock's resolution
  const rates = { gflops: flops / seconds / 1e9, gigabytesPerSecond: bytes / seconds / 1e9 };
  return { name, op, wall, gpuMs, dispatches, flops, bytes, ...rates };
}

/** Bytes of a call's operands: each read once, and written as well if it is updated in place. */
function operandBytes({ op, operands }: BenchCase): number {
  return rowOf(op).signature.inputs.reduce((sum, { name, updated }) => {
    const operand = operands[name];
    if (!operand) return sum;
    return sum + sizeBytes(operand.dtype, operand.moves ?? sizeOf(operand.shape) * (updated ? 2 : 1));
  }, 0);
}

/** Checks and times one case. A `SidenetError` becomes a `BenchFailure`. */
export async function measureCase(
  device: Device,
  benchCase: BenchCase,
  { timeMs, check }: MeasureOptions,
): Promise<BenchResult | BenchFailure> {
  const { op, name, attrs, residuals } = benchCase;
  let operands: (Tensor | null)[] = [];
  try {
    operands = makeOperands(device, benchCase);
    const problem = check ? await checkCase(device, benchCase, operands) : null;
    if (problem !== null) return { name, op, error: problem };
    let bytes = operandBytes(benchCase);
    const call = () => {
      for (const tensor of Object.values(device.run(op, operands, attrs, residuals))) tensor.dispose();
    };
    const flopsBefore = device.flops;
    const outputs = Object.values(device.run(op, operands, attrs, residuals));
    const flops = device.flops - flopsBefore;
    for (const tensor of outputs) {
      bytes += sizeBytes(tensor.dtype, tensor.size);
      tensor.dispose();
    }
    return await timeCall(device, { name, op, call, flops, bytes }, timeMs);
  } catch (error) {
    if (error instanceof SidenetError) return { name, op, error: error.message };
    throw error;
  } finally {
    for (const tensor of operands) tensor?.dispose();
  }
}
