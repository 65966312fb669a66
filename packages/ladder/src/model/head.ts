/** The embedding table and the language-model head of a decoder, stored as floats or in NF4. */
import type { Ops, Tensor } from "@sidenet/tensor";
import type { Nf4Weight } from "./nf4-weight.ts";

/** ids i32[B,T] → H_0 f32[B,T,d]. */
export type Embedding = (ops: Ops, ids: Tensor) => Tensor;

/** Options of the loss over a head. */
export interface LossOptions {
  /** Bytes of logits that are computed at a time. The default depends on the device. */
  readonly chunkBytes?: number;
}

/** The language-model head, applied to hidden states after the final norm. */
export interface Head {
  /** Logits f32[B,T,V] of h[B,T,d]. It holds all of them, so it is for few positions or small vocabularies. */
  logits(ops: Ops, h: Tensor): Tensor;
  /** Mean negative log-likelihood f32[] of targets i32[N] over h[N,d], where -100 is ignored. It never holds all logits. */
  loss(ops: Ops, h: Tensor, targets: Tensor, options: LossOptions): Tensor;
}

/** The embedding of a float table [V,d]. The residual stream is f32, whatever the dtype of the table. */
export const floatEmbedding =
  (table: Tensor): Embedding =>
  (ops, ids) => {
    const h = ops.embedding(ids, table);
    return h.dtype === "f32" ? h : ops.cast(h, { to: "f32" });
  };

/** The head of a float matrix [V,d]. */
export const floatHead = (matrix: Tensor): Head => ({
  logits: (ops, h) => ops.linear(h, matrix),
  loss: (ops, h, targets, options) => ops.lmHeadLoss(h, matrix, targets, options),
});

/** The embedding of a table [V,d] in NF4, of which only the rows of the tokens are dequantized. */
export const nf4Embedding =
  ({ codes, table, absmax, scales, attrs }: Nf4Weight, [rows, width]: readonly number[]): Embedding =>
  (ops, ids) =>
    ops.nf4Embedding(ids, codes, table, absmax, scales, { rows, width, ...attrs });

/** The head of a frozen matrix [V,d] in NF4. */
export const nf4Head = (
  { codes, table, absmax, scales, attrs }: Nf4Weight,
  [vocab]: readonly number[],
): Head => ({
  logits: (ops, h) => ops.nf4Linear(h, codes, table, absmax, scales, null, { out: vocab, ...attrs }),
  loss: (ops, h, targets, options) =>
    ops.nf4HeadLoss(h, codes, table, absmax, scales, targets, { vocab, ...attrs, ...options }),
});
