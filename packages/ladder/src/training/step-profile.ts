/** A look into single steps of a run, for its report: memory over a step, and where the time of a step goes. */
import {
  type BytesByCategory,
  type Device,
  type MemorySample,
  recordTimeline,
  WebGpuDevice,
} from "@sidenet/tensor";

/** Time of one kernel on a GPU, of one op elsewhere. */
export interface TimeShare {
  readonly name: string;
  readonly calls: number;
  readonly elapsed_ms: number;
}

/** Memory and time of one step of a run, as `profile.json` has them. */
export interface StepProfile {
  /** Peak memory during each op of one step, by category; for very many ops, the peak of each group of consecutive ops. */
  readonly memory: readonly BytesByCategory[];
  /** Largest first. */
  readonly time: readonly TimeShare[];
  /** How time was taken: `gpu` timestamps by kernel, or `host` clock by op. */
  readonly clock: "gpu" | "host";
}

/** The largest number of points in the plot of a report. */
const MAX_POINTS = 1500;

/** The peak of each sample, or of each group of consecutive samples where there are more than `MAX_POINTS`. */
export function memoryPoints(samples: readonly MemorySample[]): BytesByCategory[] {
  const groupSize = Math.max(1, Math.ceil(samples.length / MAX_POINTS));
  return Array.from({ length: Math.ceil(samples.length / groupSize) }, (_, i) =>
    samples
      .slice(i * groupSize, (i + 1) * groupSize)
      .reduce((highest, sample) => (sample.highestBytes > highest.highestBytes ? sample : highest)),
  ).map(({ highest }) => highest);
}

/** Runs `body` and records the memory of each op. */
export async function memoryOver<T>(
  device: Device,
  body: () => Promise<T>,
): Promise<{ result: T; samples: MemorySample[] }> {
  const stop = recordTimeline(device);
  try {
    const result = await body();
    return { result, samples: stop() };
  } finally {
    stop();
  }
}

/** Runs `body` and measures its time: by kernel on a GPU with timestamps, by op with the host's clock on other devices. */
export async function timeOver<T>(
  device: Device,
  body: () => Promise<T>,
): Promise<{ result: T; time: TimeShare[]; clock: StepProfile["clock"] }> {
  if (device instanceof WebGpuDevice) {
    if (!device.gpu.features.has("timestamp-query")) return { result: await body(), time: [], clock: "gpu" };
    device.startProfile();
    const result = await body().catch(async (error: unknown) => {
      await device.stopProfile().catch(() => {}); // the first error is the one to report
      throw error;
    });
    const time = (await device.stopProfile()).map(({ kernel, dispatches, elapsedMs }) => ({
      name: kernel,
      calls: dispatches,
      elapsed_ms: elapsedMs,
    }));
    return { result, time: time.sort((a, b) => b.elapsed_ms - a.elapsed_ms), clock: "gpu" };
  }
  const shares = new Map<string, { calls: number; elapsed_ms: number }>();
  const before = device.onOp;
  let last = performance.now();
  device.onOp = (name) => {
    before?.(name);
    const now = performance.now();
    const share = shares.get(name) ?? { calls: 0, elapsed_ms: 0 };
    shares.set(name, { calls: share.calls + 1, elapsed_ms: share.elapsed_ms + now - last });
    last = now;
  };
  try {
    const result = await body();
    const time = [...shares].map(([name, share]) => ({ name, ...share }));
    return { result, time: time.sort((a, b) => b.elapsed_ms - a.elapsed_ms), clock: "host" };
  } finally {
    device.onOp = before;
  }
}
