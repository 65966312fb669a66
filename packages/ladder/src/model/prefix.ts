/**
 * A prefix: tokens that stand before every row, such as instructions and solved examples. A frozen model's keys and values of
 * them depend on nothing else, so they are computed once, and each row pays for its own tokens only.
 *
 * A prefix of P tokens has the positions -P .. -1, so that a row begins at position 0 with and without one: rope turns queries
 * and keys by their distance.
 */
import { type Device, SidenetError, type Tensor } from "@sidenet/tensor";
import type { Attention, BlockWeights, LayerCache } from "./block.ts";
import { contextLimit, type ModelConfig } from "./config.ts";
import type { TokenBatch } from "./decoder.ts";
import { kvLayers, kvShapes, StateCache } from "./state-cache.ts";

/** Throws `L-CONTEXT` for a prefix that leaves no space for a text. */
export function checkPrefix({ length }: readonly number[], config: ModelConfig): void {
  const limit = contextLimit(config);
  if (length < limit) return;
  throw new SidenetError(
    "L-CONTEXT",
    `a prefix of ${length} tokens leaves nothing of the model's context of ${limit} for a text. Shorten it.`,
  );
}

/** For packed rows: attention stays within each of their texts, and a prefix belongs to none. */
export const refusePacked = (): SidenetError =>
  new SidenetError(
    "L-OPTION",
    "rows that several texts share (--pack-length) cannot follow a prefix: each text sees itself alone. Leave out one of the two.",
  );

/** Hidden keys before the first visible one of each row, which is at position 0: what stands before it has a distance from it. */
export function leftPadding({ attentionMask, batchSize: B }: TokenBatch): number[] {
  if (!attentionMask) return new Array<number>(B).fill(0);
  const S = attentionMask.length / B;
  return Array.from({ length: B }, (_, b) => {
    let count = 0;
    while (count < S && attentionMask[b * S + count] === 0) count++;
    return count;
  });
}

/** Tokens that stand before every row, and their keys and values. `Decoder.readPrefix` makes and fills one. */
export class Prefix {
  /** [P] token ids */
  readonly ids: readonly number[];
  /** Keys and values of one row of P positions, by block; zeros until the model has read them. */
  readonly layers: readonly LayerCache[];
  readonly #cache: StateCache;
  readonly #device: Device;

  constructor(device: Device, config: ModelConfig, ids: readonly number[]) {
    this.ids = [...ids];
    const shapes = kvShapes({ ...config, numLayers: config.numHiddenLayers }, ids.length);
    this.#cache = StateCache.empty(device, shapes, 1, ids.length);
    this.layers = kvLayers(this.#cache.tensors);
    this.#device = device;
  }

  /** The mask u8[B,P+S] of a batch's keys after the prefix, in the surrounding scope; null: all are visible. */
  keyMask({ attentionMask, batchSize: B }: TokenBatch): Tensor | null {
    if (!attentionMask) return null;
    const [P, S] = [this.ids.length, attentionMask.length / B];
    const values = () => {
      const mask = new Uint8Array(B * (P + S)).fill(1);
      for (let i = 0; i < B * S; i++) mask[(Math.floor(i / S) + 1) * P + i] = attentionMask[i];
      return mask;
    };
    return this.#device.tensor(values, [B, P + S], { dtype: "u8", label: "mask after the prefix" });
  }

  /** The weights of a block, whose attention sees the prefix before each row. Its mask must be that of `keyMask`. */
  before(weights: BlockWeights, layer: number): BlockWeights {
    const { k: keys, v: values } = this.layers[layer];
    const [, P, n, c] = keys.shape;
    const attention: Attention = (ops, q, k, v, keyMask, segments, attributes) => {
      const join = (before: Tensor, own: Tensor) => {
        const one = ops.reshape(before, { shape: [P, n, c] });
        const all = ops.broadcast(one, { shape: [q.shape[0], P, n, c], axis: 0 });
        return ops.concat(all, own, { axis: 1 });
      };
      const queryOffset = P + (attributes?.queryOffset ?? 0);
      const after = { ...attributes, queryOffset };
      return weights.attention(ops, q, join(keys, k), join(values, v), keyMask, segments, after);
    };
    return { ...weights, attention };
  }

  /** Frees the keys and values. */
  dispose(): void {
    this.#cache.dispose();
  }
}
