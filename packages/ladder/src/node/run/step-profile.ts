/** A look into single steps of a run, for its report: memory over a step, and where the time of a step goes. */
import { type BytesByCategory, type Device, WebGpuDevice } from "@sidenet/tensor";

/** Time of one kernel on a GPU, of one op elsewhere. */
export interface TimeShare {
  readonly name: string;
  readonly calls: number;
  readonly elapsed_ms: number;
}

export interface StepProfile {
  /** Live bytes by category at allocations of one step, in order; the largest of each stretch where there were very many. */
  readonly memory: readonly BytesByCategory[];
  /** Largest first. */
  readonly time: readonly TimeShare[];
  /** How time was taken: `gpu` timestamps by kernel, or `host` clock by op. */
  readonly clock: "gpu" | "host";
}

/** Points that a plot of this width can show. */
const MOST_POINTS = 1500;

const total = (bytes: BytesByCategory): number => Object.values(bytes).reduce((sum, count) => sum + count, 0);

/** Of each of `MOST_POINTS` equal stretches its highest point. */
function thin(points: readonly BytesByCategory[]): BytesByCategory[] {
  const stretch = Math.ceil(points.length / MOST_POINTS);
  if (stretch <= 1) return [...points];
  return Array.from({ length: Math.ceil(points.length / stretch) }, (_, i) =>
    points
      .slice(i * stretch, (i + 1) * stretch)
      .reduce((highest, point) => (total(point) > total(highest) ? point : highest)),
  );
}

/** Memory over whatever `body` does on the device. */
export async function memoryOver<T>(
  device: Device,
  body: () => Promise<T>,
): Promise<{ result: T; memory: BytesByCategory[] }> {
  const { memory } = device;
  const points = [memory.live];
  const before = memory.onReserve;
  memory.onReserve = (allocation) => {
    before?.(allocation);
    points.push(memory.live);
  };
  try {
    const result = await body();
    points.push(memory.live);
    return { result, memory: thin(points) };
  } finally {
    memory.onReserve = before;
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
