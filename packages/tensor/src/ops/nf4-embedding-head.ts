/** The token embedding and the lm_head loss of a decoder over a matrix [V,C] in NF4. */
import { EPS } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp } from "../op.ts";
import { sizeOf } from "../shape.ts";
import type { TensorSpec } from "../signature.ts";
import { checkLoss, drawTargets, LOSS_ATTRS, LOSS_RANGES } from "./cross-entropy.ts";
import { referenceGather, runGather } from "./embedding.ts";
import { CHUNK_RANGES, CHUNKS, headLossFlops, referenceHeadLoss, runHeadLoss } from "./lm-head.ts";
import { checkNf4, dequantizeNf4, drawNf4, type Nf4Operands } from "./nf4.ts";
import { DEFAULTS, PANEL_RANGES, panelsOf } from "./nf4-linear.ts";

/** Throws `T-ATTR` for invalid extents, which come from attributes here, and what `checkNf4` throws. */
function checkMatrix(
  op: string,
  [V, C]: readonly [number, number],
  weight: Nf4Operands<TensorSpec>,
  attrs: typeof DEFAULTS,
): void {
  if (!Number.isInteger(V) || !Number.isInteger(C) || V < 1 || C < 1) {
    throw new SidenetError("T-ATTR", `${op}: the matrix is [${V}, ${C}], wanted whole numbers >= 1.`);
  }
  checkNf4(op, V * C, weight, attrs);
}

export const nf4Embedding = defineOp({
  name: "nf4Embedding",
  doc: "y[n] = row ids[n] of a table [rows, width] in NF4; an id outside it gives a row of zeros",
  sig: "ids:i32[N..] codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] -> y:f32[N..,C]",
  attrs: { rows: 0, width: 0, ...DEFAULTS },
  ranges: PANEL_RANGES,
  infer: ([ids, codes, table, absmax, scales], { rows: V, width: C, ...attrs }) => {
    checkMatrix("nf4Embedding", [V, C], { codes, table, absmax, scales }, attrs);
    return {
      outputs: [{ shape: [...ids.shape, C], dtype: "f32" }],
      dims: { N: sizeOf(ids.shape), V, C },
    };
  },
  reference({ ids, codes, table, absmax, scales, y }, { V, C }, blocks) {
    const w = dequantizeNf4({ codes, table, absmax, scales }, V * C, blocks);
    referenceGather({ ids, table: w, y }, V, C);
  },
  kernel(k, { ids, codes, table, absmax, scales, y }, { N, V, C }, { rows: _, width: __, ...attrs }) {
    const weight = panelsOf(k, { codes, table, absmax, scales }, V, C, attrs, "f32");
    runGather(k, { ids, table: weight, y }, { N, V, C });
  },
  draw: (pick) => {
    const [V, C] = [pick.int(1, 60), 4 * pick.int(1, 20)];
    const { attrs, values, dims, ...drawn } = drawNf4(pick, V * C);
    return {
      ...drawn,
      dims: { ...dims, N: pick.shape(40, 2) },
      values: { ...values, ids: (n: number) => pick.ints(n, -1, V) },
      attrs: { ...attrs, rows: V, width: C, panelBytes: pick.oneOf([2 ** 23, 2 ** 12]) },
    };
  },
  close: { rel: 0 }, // a copy of what nf4Dequantize makes, to the bit
  flops: () => 0,
});

export const nf4HeadLoss = defineOp({
  name: "nf4HeadLoss",
  doc: "lmHeadLoss over a head [vocab, C] in NF4, of which at most a panel of rows is dequantized at a time",
  sig: "h:f32[N,C] codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] targets:i32[N] -> loss:f32[] | dh:f32[N,C]",
  attrs: { vocab: 0, ...LOSS_ATTRS, ...CHUNKS, ...DEFAULTS },
  ranges: { ...LOSS_RANGES, ...CHUNK_RANGES, ...PANEL_RANGES },
  check: checkLoss,
  infer: ([h, codes, table, absmax, scales], { vocab: V, block, nestedBlock, panelBytes }) => {
    checkMatrix(
      "nf4HeadLoss",
      [V, h.shape[1]],
      { codes, table, absmax, scales },
      { block, nestedBlock, panelBytes },
    );
    return { outputs: [{ shape: [], dtype: "f32" }, h], dims: { V } };
  },
  reference({ h, codes, table, absmax, scales, targets, loss, dh }, { N, C, V }, attrs) {
    const w = dequantizeNf4({ codes, table, absmax, scales }, V * C, attrs);
    referenceHeadLoss({ h, w, targets, loss, dh }, { N, C, V }, attrs);
  },
  kernel(k, { h, codes, table, absmax, scales, targets, loss, dh }, { N, C, V }, { vocab: _, ...attrs }) {
    const { panelBytes, block, nestedBlock, ...losses } = attrs;
    const weight = { codes, table, absmax, scales };
    const head = panelsOf(k, weight, V, C, { panelBytes, block, nestedBlock }, "f32");
    runHeadLoss(k, { h, head, targets, loss, dh }, { N, C, V }, losses);
  },
  draw: (pick) => {
    const [V, C] = [4 * pick.int(1, pick.oneOf([40, 40, 160])), 4 * pick.int(1, 16)];
    const nf4 = drawNf4(pick, V * C);
    const { attrs, values } = drawTargets(pick, V);
    return {
      ...nf4,
      dims: { ...nf4.dims, N: pick.int(1, 150), C },
      values: { ...nf4.values, ...values },
      attrs: {
        ...nf4.attrs,
        ...attrs,
        vocab: V,
        chunkTokens: pick.oneOf([0, 64]),
        blockColumns: pick.oneOf([0, 64]),
        panelBytes: pick.oneOf([2 ** 23, 2 ** 12]),
      },
    };
  },
  // As lmHeadLoss, with weights up to 4 times as large: logits reach tens, and the exponential makes their absolute errors relative.
  close: ({ C, V }) => ({ rel: (256 + 16 * Math.sqrt(C * V)) * EPS, abs: 1e-5 }),
  flops: headLossFlops,
});
