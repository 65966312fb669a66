/**
 * The gradient table: one row for each row of the op table, typed as a total map, so that the table does not compile when
 * an op has no gradient row. The row of an op without gradients gives the reason.
 */
import type { AnyOpRow, OpName } from "@sidenet/tensor";
import * as activations from "./activations.ts";
import { attention } from "./attention.ts";
import * as elementwise from "./elementwise.ts";
import {
  type GradRow,
  hasGradient,
  IN_PLACE,
  INTEGER_OUTPUT,
  OPTIMIZER,
  QUANTIZED,
  SECOND_ORDER,
} from "./grad-row.ts";
import { concat, embedding, reshape, selectRows, slice, sliceBackward, transpose } from "./layout.ts";
import { crossEntropy, lmHeadLoss } from "./loss.ts";
import { linear, matmul, matmulNT, matmulTN } from "./matmul.ts";
import { nf4HeadLoss, nf4Linear } from "./nf4.ts";
import { layerNorm, rmsNorm, rope, softmax } from "./norm.ts";
import { dropout } from "./random.ts";
import * as reductions from "./reduce.ts";

/** The gradient row of every op. */
export const gradTable = {
  // These files export nothing but rows.
  ...activations,
  ...elementwise,
  ...reductions,
  accumulate: IN_PLACE,
  adamw: IN_PLACE,
  adamw8: IN_PLACE,
  attention,
  attentionBackwardKV: SECOND_ORDER,
  attentionBackwardQ: SECOND_ORDER,
  cacheWrite: IN_PLACE,
  clipFactor: OPTIMIZER,
  concat,
  crossEntropy,
  crossEntropyBackward: SECOND_ORDER,
  dropout,
  embedding,
  embeddingBackward: SECOND_ORDER,
  layerNorm,
  layerNormBackwardGain: SECOND_ORDER,
  layerNormBackwardX: SECOND_ORDER,
  linear,
  lmHeadLoss,
  lmHeadLossBackwardW: SECOND_ORDER,
  matmul,
  matmulNT,
  matmulTN,
  dequantize8: QUANTIZED,
  nf4Dequantize: QUANTIZED,
  nf4Embedding: QUANTIZED,
  quantize8: QUANTIZED,
  nf4HeadLoss,
  nf4Linear,
  nf4LinearBackwardX: SECOND_ORDER,
  nf4Quantize: QUANTIZED,
  nf4QuantizePart: IN_PLACE,
  nf4QuantizeScales: IN_PLACE,
  normal: IN_PLACE,
  reshape,
  rmsNorm,
  rmsNormBackwardGain: SECOND_ORDER,
  rmsNormBackwardX: SECOND_ORDER,
  rope,
  sampleLogits: INTEGER_OUTPUT,
  selectRows,
  sgd: IN_PLACE,
  slice,
  sliceBackward,
  softmax,
  softmaxBackward: SECOND_ORDER,
  sumSquares: IN_PLACE,
  transpose,
  uniform: IN_PLACE,
} satisfies { readonly [K in OpName]: GradRow<K> };

/** The gradient row of an op: its own from `withGradient`, or that of the table; null where there is none. */
export const gradRowOf = (row: AnyOpRow): GradRow | null =>
  hasGradient(row) ? row.gradient : ((gradTable as Readonly<Record<string, GradRow>>)[row.name] ?? null);
