/** Embedding and head of a decoder, over matrices that are stored as floats or in NF4. */
import type { Ops, Tensor } from "@sidenet/tensor";
import type { Nf4Weight } from "./nf4-weight.ts";

/** ids i32[B,T] → H_0 f32[B,T,d]. */
export type Embedding = (ops: Ops, ids: Tensor) => Tensor;

/** Options of the loss over a head. */
export interface LossOptions {
  /** Bytes of logits that exist at a time. Default: what suits the device. */
  readonly chunkBytes?: number;
}

/** The language-model head over normed states h. */
export interface Head {
  /** f32[B,T,V] of h[B,T,d]: all of them, so for few positions or small vocabularies. */
  logits(ops: Ops, h: Tensor): Tensor;
  /** Mean negative log-likelihood f32[] of targets i32[N], -100 ignored, over h[N,d]; never holds all logits. */
  loss(ops: Ops, h: Tensor, targets: Tensor, options: LossOptions): Tensor;
}

/** A table [V,d] of floats. The residual stream is f32 whatever the table is. */
export const floatEmbedding =
  (table: Tensor): Embedding =>
  (ops, ids) => {
    const h = ops.embedding(ids, table);
    return h.dtype === "f32" ? h : ops.cast(h, { to: "f32" });
  };

/** A matrix [V,d] of floats. */
export const floatHead = (matrix: Tensor): Head => ({
  logits: (ops, h) => ops.linear(h, matrix),
  loss: (ops, h, targets, options) => ops.lmHeadLoss(h, matrix, targets, options),
});

/** A table [V,d] in NF4. Only the rows that tokens ask for are kept. */
export const nf4Embedding =
  ({ codes, table, absmax, scales, attrs }: Nf4Weight, [rows, width]: readonly number[]): Embedding =>
  (ops, ids) =>
    ops.nf4Embedding(ids, codes, table, absmax, scales, { rows, width, ...attrs });

/** A matrix [V,d] in NF4, frozen. */
export const nf4Head = (
  { codes, table, absmax, scales, attrs }: Nf4Weight,
  [vocab]: readonly number[],
): Head => ({
  logits: (ops, h) => ops.nf4Linear(h, codes, table, absmax, scales, null, { out: vocab, ...attrs }),
  loss: (ops, h, targets, options) =>
    ops.nf4HeadLoss(h, codes, table, absmax, scales, targets, { vocab, ...attrs, ...options }),
});
