import { type Device, ParamStore, type Shape, sizeOf, type Tensor } from "@sidenet/tensor";
import type { LayerCache } from "./block.ts";

/**
 * What a network keeps of earlier positions while generating, f32 tensors of [B, ...] each: keys and values, or the state of a
 * recurrence. They start as zeros, since attention multiplies values at positions not yet written by a weight of 0, and 0 times a
 * NaN in reused memory would be NaN.
 */
export class StateCache {
  readonly tensors: readonly Tensor[];
  readonly batchSize: number;
  /** The number of positions that each row holds. */
  readonly capacity: number;
  readonly #store: ParamStore;

  /** Takes ownership of the tensors. */
  private constructor(device: Device, batchSize: number, capacity: number, make: readonly (() => Tensor)[]) {
    this.batchSize = batchSize;
    this.capacity = capacity;
    this.#store = ParamStore.filled(device, "workspace", (store) => {
      for (const [i, one] of make.entries()) store.add(`${i}`, one());
    });
    this.tensors = [...this.#store].map(([, tensor]) => tensor);
  }

  /** Zeros for `batchSize` rows of these shapes, which hold up to `capacity` positions. */
  static empty(device: Device, rowShapes: readonly Shape[], batchSize: number, capacity: number): StateCache {
    const zeros = rowShapes.map(
      (shape) => () => device.zeros([batchSize, ...shape], { label: "cache of positions" }),
    );
    return new StateCache(device, batchSize, capacity, zeros);
  }

  /** Bytes of one row of the batch. */
  get rowBytes(): number {
    return this.tensors.reduce((sum, { size }) => sum + 4 * size, 0) / this.batchSize;
  }

  /** A new cache with copies of these rows, in this order; a row may be taken more than once. */
  take(rows: readonly number[]): StateCache {
    const { device } = this.#store;
    return device.scope(() => {
      const taken = this.tensors.map((tensor) => () => takeRows(tensor, rows));
      return new StateCache(device, rows.length, this.capacity, taken);
    });
  }

  /** Frees the tensors. */
  dispose(): void {
    this.#store.dispose();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** A copy of a tensor whose row r is row `rows[r]`. */
function takeRows(table: Tensor, rows: readonly number[]): Tensor {
  const { device } = table;
  const { ops } = device;
  const [B, ...rest] = table.shape;
  const ids = device.tensor(rows, [rows.length], { dtype: "i32", label: "rows of a cache" });
  const taken = ops.embedding(ids, ops.reshape(table, { shape: [B, sizeOf(rest)] }));
  return ops.reshape(taken, { shape: [rows.length, ...rest] });
}

/** The layers and heads of keys and values. */
export interface KvShape {
  readonly numLayers: number;
  readonly numKeyValueHeads: number;
  readonly headDim: number;
}

/** Row shapes of the keys and values of every layer for up to `capacity` positions. */
export const kvShapes = ({ numLayers, numKeyValueHeads, headDim }: KvShape, capacity: number): Shape[] =>
  new Array<Shape>(2 * numLayers).fill([capacity, numKeyValueHeads, headDim]);

/** The keys and values of every layer, of the tensors of a cache of `kvShapes`. */
export const kvLayers = (tensors: readonly Tensor[]): LayerCache[] =>
  Array.from({ length: tensors.length / 2 }, (_, i) => ({ k: tensors[2 * i], v: tensors[2 * i + 1] }));
