import type { Adapter } from "../methods/adapter.ts";
import type { Decoder } from "../model/decoder.ts";
import { type CacheShape, KvCache } from "../model/kv-cache.ts";

/** The caches of a model: of its backbone, and of the side network of each adapter that has one. */
export class ModelCache {
  readonly cache: KvCache;
  /** In the order of the adapters. */
  readonly sideCaches: readonly (KvCache | null)[];

  /** Frees the caches made so far where making the next fails. */
  private constructor(backbone: KvCache, sides: readonly (() => KvCache | null)[]) {
    const made: (KvCache | null)[] = [];
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
    const make = (shape: CacheShape) => new KvCache(device, shape, batchSize, capacity);
    const sides = adapters.map((adapter) => adapter?.side?.cacheShape ?? null);
    return new ModelCache(
      make({ ...config, numLayers: config.numHiddenLayers }),
      sides.map((side) => () => side && make(side)),
    );
  }

  /** The number of positions that each row holds. */
  get capacity(): number {
    return this.cache.capacity;
  }

  /** Bytes of one row of the batch. */
  get rowBytes(): number {
    return this.sideCaches.reduce((sum, side) => sum + (side?.rowBytes ?? 0), this.cache.rowBytes);
  }

  /** New caches with copies of these rows, in this order; a row may be taken more than once. */
  take(rows: readonly number[]): ModelCache {
    return new ModelCache(
      this.cache.take(rows),
      this.sideCaches.map((side) => () => side?.take(rows) ?? null),
    );
  }

  /** New caches with these positions and room for more, up to `capacity`. */
  grown(capacity: number): ModelCache {
    return new ModelCache(
      this.cache.grown(capacity),
      this.sideCaches.map((side) => () => side?.grown(capacity) ?? null),
    );
  }

  /** Frees the keys and values. */
  dispose(): void {
    this.cache.dispose();
    for (const side of this.sideCaches) side?.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
