/**
 * The gradient table: one row for each row of the op table, typed as a total map, so that an op without a gradient row
 * does not compile. A row that has no gradient says why.
 */
import type { OpName } from "@sidenet/tensor";
import { attention } from "./attention.ts";
import { add, cast, mul, scale, scaleBy, sigmoid, silu, siluMul } from "./elementwise.ts";
import type { GradRow, NoGradient } from "./grad-row.ts";
import { broadcast, embedding, reshape, slice, sliceBackward, sum } from "./layout.ts";
import { crossEntropy, lmHeadLoss } from "./loss.ts";
import { linear, matmul, matmulNT, matmulTN } from "./matmul.ts";
import { rmsNorm, rope } from "./norm.ts";

const IN_PLACE: NoGradient = { none: "in place" };
const INTEGER_OUTPUT: NoGradient = { none: "integer output" };
const SECOND_ORDER: NoGradient = { none: "gradients of gradients are not supported" };
const OPTIMIZER: NoGradient = { none: "part of the optimizer" };

export const gradTable = {
  accumulate: IN_PLACE,
  adamw: IN_PLACE,
  add,
  argmax: INTEGER_OUTPUT,
  attention,
  attentionBackwardKV: SECOND_ORDER,
  attentionBackwardQ: SECOND_ORDER,
  broadcast,
  cacheWrite: IN_PLACE,
  cast,
  clipFactor: OPTIMIZER,
  crossEntropy,
  crossEntropyBackward: SECOND_ORDER,
  embedding,
  embeddingBackward: SECOND_ORDER,
  fill: IN_PLACE,
  linear,
  lmHeadLoss,
  lmHeadLossBackwardW: SECOND_ORDER,
  matmul,
  matmulNT,
  matmulTN,
  mul,
  reshape,
  rmsNorm,
  rmsNormBackwardGain: SECOND_ORDER,
  rmsNormBackwardX: SECOND_ORDER,
  rope,
  scale,
  scaleBy,
  sigmoid,
  silu,
  siluMul,
  siluMulBackward: SECOND_ORDER,
  slice,
  sliceBackward,
  sum,
  sumSquares: IN_PLACE,
} satisfies { readonly [K in OpName]: GradRow<K> };

export const gradRowOf = (op: OpName): GradRow => gradTable[op];
