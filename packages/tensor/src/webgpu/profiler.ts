import { USAGE } from "./buffer-pool.ts";
import type { KernelTime } from "./kernel-time.ts";

/** Passes per query set: two timestamps each, of the 4,096 that the specification allows. */
const CAPACITY = 2048;

/**
 * Times each dispatch with timestamp queries, in a compute pass of its own. `finish` returns the sums by kernel.
 */
export class Profiler {
  readonly #device: GPUDevice;
  readonly #querySet: GPUQuerySet;
  readonly #resolved: GPUBuffer;
  readonly #labels: string[] = [];
  readonly #totals = new Map<string, { dispatches: number; elapsedMs: number }>();
  readonly #pending: Promise<void>[] = [];

  constructor(device: GPUDevice) {
    this.#device = device;
    this.#querySet = device.createQuerySet({ type: "timestamp", count: 2 * CAPACITY });
    this.#resolved = device.createBuffer({
      size: CAPACITY * 16,
      usage: USAGE.QUERY_RESOLVE | USAGE.COPY_SRC,
    });
  }

  /** Whether the query set is full: submit before the next dispatch. */
  get full(): boolean {
    return this.#labels.length >= CAPACITY;
  }

  /** The timestamp writes of the pass of one dispatch. */
  next(label: string): GPUComputePassTimestampWrites {
    const at = 2 * this.#labels.length;
    this.#labels.push(label);
    return { querySet: this.#querySet, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }

  /** Encodes the copy of the timestamps since the last call; call the result after the submit, to read them. */
  resolve(encoder: GPUCommandEncoder): (() => void) | null {
    const labels = this.#labels.splice(0);
    if (labels.length === 0) return null;
    const sizeBytes = labels.length * 16;
    const staging = this.#device.createBuffer({ size: sizeBytes, usage: USAGE.MAP_READ | USAGE.COPY_DST });
    encoder.resolveQuerySet(this.#querySet, 0, 2 * labels.length, this.#resolved, 0);
    encoder.copyBufferToBuffer(this.#resolved, 0, staging, 0, sizeBytes);
    return () => {
      const collected = this.#collect(staging, labels);
      collected.catch(() => {}); // `finish` reports it; a device that is disposed before then is no error
      this.#pending.push(collected);
    };
  }

  /** GPU time by kernel, slowest first. */
  async finish(): Promise<KernelTime[]> {
    await Promise.all(this.#pending);
    this.#querySet.destroy();
    this.#resolved.destroy();
    return [...this.#totals]
      .map(([kernel, total]) => ({ kernel, ...total }))
      .sort((a, b) => b.elapsedMs - a.elapsedMs);
  }

  async #collect(staging: GPUBuffer, labels: readonly string[]): Promise<void> {
    await staging.mapAsync(1);
    const stamps = new BigUint64Array(staging.getMappedRange());
    for (const [i, label] of labels.entries()) {
      const total = this.#totals.get(label) ?? { dispatches: 0, elapsedMs: 0 };
      total.dispatches++;
      total.elapsedMs += Math.max(0, Number(stamps[2 * i + 1] - stamps[2 * i])) / 1e6;
      this.#totals.set(label, total);
    }
    staging.unmap();
    staging.destroy();
  }
}
