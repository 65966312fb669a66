import { gradRow, INTEGER_INPUT, QUANTIZED } from "./grad-row.ts";
import { biasGradient, widen } from "./shared.ts";

export const nf4Linear = gradRow("nf4Linear", {
  // dx = dy w with the dequantized weight; what is saved is the weight, which is resident anyway.
  x: {
    saves: ["codes", "table", "absmax", "scales"],
    pull(ops, dy, { codes, table, absmax, scales }, { attrs: { out: _, ...attrs }, shape, dtype }) {
      const inner = shape[shape.length - 1];
      return ops.nf4LinearBackwardX(widen(ops, dy, dtype), codes, table, absmax, scales, {
        ...attrs,
        in: inner,
      });
    },
  },
  codes: QUANTIZED,
  table: QUANTIZED,
  absmax: QUANTIZED,
  scales: QUANTIZED,
  bias: { saves: [], pull: (ops, dy, _saved, context) => biasGradient(ops, dy, context) },
});

export const nf4HeadLoss = gradRow("nf4HeadLoss", {
  // As in lmHeadLoss, the forward pass computes dh (a residual) with the loss.
  h: { saves: ["dh"], pull: (ops, dy, { dh }) => ops.scaleBy(dh, dy) },
  codes: QUANTIZED,
  table: QUANTIZED,
  absmax: QUANTIZED,
  scales: QUANTIZED,
  targets: INTEGER_INPUT,
});
