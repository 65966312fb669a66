import { type Device, ParamStore } from "@sidenet/tensor";
import type { BlockShape, LayerCache } from "./block.ts";

/**
 * Keys and values of every layer for up to `capacity` positions, [B,S,n_kv,c] each, f32. It starts as zeros: attention gives
 * a position that is not written yet the weight 0, and 0 times what old memory may hold, NaN, would still be NaN.
 */
export class KvCache {
  readonly layers: readonly LayerCache[];
  readonly capacity: number;
  readonly #store: ParamStore;

  constructor(device: Device, shape: BlockShape, numLayers: number, batchSize: number, capacity: number) {
    this.capacity = capacity;
    this.#store = new ParamStore(device, "workspace");
    const extents = [batchSize, capacity, shape.numKeyValueHeads, shape.headDim];
    this.layers = Array.from({ length: numLayers }, (_, i) => ({
      k: this.#store.set(`${i}.k`, device.zeros(extents, { label: "key cache" })),
      v: this.#store.set(`${i}.v`, device.zeros(extents, { label: "value cache" })),
    }));
  }

  dispose(): void {
    this.#store.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
