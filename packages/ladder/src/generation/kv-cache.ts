import { type Device, ParamStore, sizeOf } from "@sidenet/tensor";
import type { Adapter, CacheShape } from "../methods/adapter.ts";
import type { LayerCache } from "../model/block.ts";
import type { Decoder } from "../model/decoder.ts";

/**
 * Keys and values of every layer for up to `capacity` positions, f32 [B,S,n_kv,c] each. They start as zeros, since attention
 * multiplies values at positions not yet written by a weight of 0, and 0 times a NaN in reused memory would be NaN.
 */
export class KvCache {
  readonly layers: readonly LayerCache[];
  readonly batchSize: number;
  readonly capacity: number;
  readonly #store: ParamStore;
  readonly #shape: CacheShape;

  /** `from`: tensors to begin with, of which it takes ownership; null: zeros. */
  constructor(
    device: Device,
    shape: CacheShape,
    batchSize: number,
    capacity: number,
    from: readonly LayerCache[] | null = null,
  ) {
    this.batchSize = batchSize;
    this.capacity = capacity;
    this.#shape = shape;
    const extents = [batchSize, capacity, shape.numKeyValueHeads, shape.headDim];
    const layers: LayerCache[] = [];
    this.#store = ParamStore.filled(device, "workspace", (store) => {
      for (let i = 0; i < shape.numLayers; i++) {
        const k = store.add(`${i}.k`, from?.[i].k ?? device.zeros(extents, { label: "key cache" }));
        const v = store.add(`${i}.v`, from?.[i].v ?? device.zeros(extents, { label: "value cache" }));
        layers.push({ k, v });
      }
    });
    this.layers = layers;
  }

  /** Bytes of one row of the batch. */
  get rowBytes(): number {
    return this.layers.reduce((sum, { k, v }) => sum + 4 * (k.size + v.size), 0) / this.batchSize;
  }

  /** A new cache with copies of these rows, in this order; a row may be taken more than once. */
  take(rows: readonly number[]): KvCache {
    const { device } = this.#store;
    return device.scope(() => {
      const layers = takeRows(this.layers, rows);
      return new KvCache(device, this.#shape, rows.length, this.capacity, layers);
    });
  }

  /** Frees the keys and values. */
  dispose(): void {
    this.#store.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

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

/** Copies of a cache's tensors whose row r is row `rows[r]`. */
function takeRows(cache: readonly LayerCache[], rows: readonly number[]): LayerCache[] {
  return cache.map(({ k, v }) => {
    const { device, shape } = k;
    const [B, ...rest] = shape;
    const width = sizeOf(rest);
    const take = (table: typeof k) => {
      const { ops } = device;
      const ids = device.tensor(rows, [rows.length], { dtype: "i32", label: "rows of a cache" });
      const taken = ops.embedding(ids, ops.reshape(table, { shape: [B, width] }));
      return ops.reshape(taken, { shape: [rows.length, ...rest] });
    };
    return { k: take(k), v: take(v) };
  });
}
