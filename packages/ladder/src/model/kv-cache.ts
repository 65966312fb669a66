import { type Device, ParamStore, sizeOf } from "@sidenet/tensor";
import type { LayerCache } from "./block.ts";

/** The layers and heads of a key-value cache. */
export interface CacheShape {
  readonly numLayers: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
}

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

  /** A new cache with these positions and room for more, up to `capacity`. */
  grown(capacity: number): KvCache {
    const grown = new KvCache(this.#store.device, this.#shape, this.batchSize, capacity);
    const { ops } = this.#store.device;
    for (const [i, { k, v }] of this.layers.entries()) {
      ops.cacheWrite(grown.layers[i].k, k, { offset: 0 });
      ops.cacheWrite(grown.layers[i].v, v, { offset: 0 });
    }
    return grown;
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
