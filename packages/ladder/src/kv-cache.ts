import { type Device, ParamStore } from "@sidenet/tensor";
import type { BlockShape, LayerCache } from "./block.ts";

/**
 * Keys and values of every layer for up to `capacity` positions, [B,S,n_kv,c] each, f32. It starts as zeros: attention gives
 * a position that is not written yet the weight 0, and 0 times what old memory may hold, NaN, would still be NaN.
 */
export class KvCache {
  readonly layers: readonly LayerCache[];
  readonly batchSize: number;
  readonly capacity: number;
  readonly #store: ParamStore;
  readonly #shape: BlockShape;

  /** `from`: what the cache holds already, which becomes its own; null: zeros. */
  constructor(
    device: Device,
    shape: BlockShape,
    numLayers: number,
    batchSize: number,
    capacity: number,
    from: readonly LayerCache[] | null = null,
  ) {
    this.batchSize = batchSize;
    this.capacity = capacity;
    this.#shape = shape;
    this.#store = new ParamStore(device, "workspace");
    const extents = [batchSize, capacity, shape.numKeyValueHeads, shape.headDim];
    this.layers = Array.from({ length: numLayers }, (_, i) => ({
      k: this.#store.set(`${i}.k`, from?.[i].k ?? device.zeros(extents, { label: "key cache" })),
      v: this.#store.set(`${i}.v`, from?.[i].v ?? device.zeros(extents, { label: "value cache" })),
    }));
  }

  /** What one row takes. */
  get rowBytes(): number {
    return this.layers.reduce((sum, { k, v }) => sum + 4 * (k.size + v.size), 0) / this.batchSize;
  }

  /** A cache of some of the rows, in this order; a row may be taken more than once. */
  take(rows: readonly number[]): KvCache {
    const { device } = this.#store;
    return device.scope(() => {
      const layers = takeRows(this.layers, rows);
      return new KvCache(device, this.#shape, layers.length, rows.length, this.capacity, layers);
    });
  }

  /** Frees keys and values. */
  dispose(): void {
    this.#store.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Row r becomes what row `rows[r]` is. */
function takeRows(cache: readonly LayerCache[], rows: readonly number[]): LayerCache[] {
  return cache.map(({ k, v }) => {
    const { device, shape } = k;
    const [B, ...rest] = shape;
    const width = rest.reduce((a, b) => a * b, 1);
    const take = (table: typeof k) => {
      const { ops } = device;
      const ids = device.tensor(rows, [rows.length], { dtype: "i32", label: "rows of a cache" });
      const taken = ops.embedding(ids, ops.reshape(table, { shape: [B, width] }));
      return ops.reshape(taken, { shape: [rows.length, ...rest] });
    };
    return { k: take(k), v: take(v) };
  });
}
