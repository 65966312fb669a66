import type { Shape } from "@sidenet/tensor";
import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import { kvShapes, StateCache } from "../model/state-cache.ts";

/** The caches of a model: of its backbone, and of the side network of each adapter. */
export class ModelCache {
  readonly cache: StateCache;
  /** In the order of the adapters; one without a side network has an empty one. */
  readonly sideCaches: readonly StateCache[];

  /** Frees the caches made so far where making the next fails. */
  private constructor(backbone: StateCache, sides: readonly (() => StateCache)[]) {
    const made: StateCache[] = [];
    this.cache = backbone;
    this.sideCaches = made;
    try {
      for (const make of sides) made.push(make());
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /** Empty caches of `batchSize` rows for up to `capacity` positions, for adapters that share a pass over the backbone. */
  static empty(
    { device, config }: Decoder,
    adapters: readonly (Adapter | null)[],
    batchSize: number,
    capacity: number,
  ): ModelCache {
    const make = (rowShapes: readonly Shape[]) => StateCache.empty(device, rowShapes, batchSize, capacity);
    return new ModelCache(
      make(kvShapes({ ...config, numLayers: config.numHiddenLayers }, capacity)),
      adapters.map((adapter) => () => make(adapter?.side?.cacheShapes(capacity) ?? [])),
    );
  }

  /** The number of positions that each row holds. */
  get capacity(): number {
    return this.cache.capacity;
  }

  /** Bytes of one row of the batch. */
  get rowBytes(): number {
    return this.sideCaches.reduce((sum, side) => sum + side.rowBytes, this.cache.rowBytes);
  }

  /** New caches with copies of these rows, in this order; a row may be taken more than once. */
  take(rows: readonly number[]): ModelCache {
    return new ModelCache(
      this.cache.take(rows),
      this.sideCaches.map((side) => () => side.take(rows)),
    );
  }

  /** Frees the tensors. */
  dispose(): void {
    this.cache.dispose();
    for (const side of this.sideCaches) side.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
