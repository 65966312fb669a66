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
  /** The most that was live in each op of one step, by category; the largest of each stretch where there were very many. */
  readonly memory: readonly BytesByCategory[];
  /** Largest first. */
  readonly time: readonly TimeShare[];
  /** How time was taken: `gpu` timestamps by kernel, or `host` clock by op. */
  readonly clock: "gpu" | "host";
}

/** Points that a plot of this width can show. */
const MAX_POINTS = 1500;

/** The highest of each sample; of each of `MAX_POINTS` equal stretches, its highest sample's. */
export function memoryPoints(samples: readonly MemorySample[]): BytesByCategory[] {
  const stretch = Math.max(1, Math.ceil(samples.length / MAX_POINTS));
  return Array.from({ length: Math.ceil(samples.length / stretch) }, (_, i) =>
    samples
      .slice(i * stretch, (i + 1) * stretch)
      .reduce((highest, sample) => (sample.highestBytes > highest.highestBytes ? sample : highest)),
  ).map(({ highest }) => highest);
}

/** Memory over whatever `body` does on the device, op by op. */
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

/** Time of whatever `body` does: by kernel where a GPU has timestamps; by op, with the host's clock, where ops run at once. */
export async function timeOver<T>(
  device: Device,
  body: () => Promise<T>,
): Promise<{ result: T; time: TimeShare[]; clock: StepProfile["clock"] }> {
  if (device instanceof WebGpuDevice) {
    if (!device.gpu.features.has("timestamp-query")) return { result: await body(), time: [], clock: "gpu" };
    device.startProfile();
    const result = await body().catch(async (error: unknown) => {
      await device.stopProfile().catch(() => {}); // the first error is the one to tell
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
