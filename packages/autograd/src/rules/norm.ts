import { gradRow, INTEGER_INPUT } from "./grad-row.ts";
import { biasGradient } from "./shared.ts";

export const rmsNorm = gradRow("rmsNorm", {
  x: {
    saves: ["x", "rstd", "gain"],
    readsF16: true,
    pull: (ops, dy, { x, rstd, gain }) => ops.rmsNormBackwardX(dy, x, rstd, gain),
  },
  gain: {
    saves: ["x", "rstd"],
    readsF16: true,
    pull: (ops, dy, { x, rstd }) => ops.rmsNormBackwardGain(dy, x, rstd),
  },
});

export const rope = gradRow("rope", {
  // A rotation is orthogonal: its gradient is the inverse rotation.
  x: {
    saves: ["cos", "sin"],
    pull: (ops, dy, { cos, sin }, { attrs }) => ops.rope(dy, cos, sin, { inverse: !attrs.inverse }),
  },
  cos: { none: "a table of constants" },
  sin: { none: "a table of constants" },
});

export const layerNorm = gradRow("layerNorm", {
  x: {
    saves: ["x", "mean", "rstd", "gain"],
    readsF16: true,
    pull: (ops, dy, { x, mean, rstd, gain }) => ops.layerNormBackwardX(dy, x, mean, rstd, gain),
  },
  gain: {
    saves: ["x", "mean", "rstd"],
    readsF16: true,
    pull: (ops, dy, { x, mean, rstd }) => ops.layerNormBackwardGain(dy, x, mean, rstd),
  },
  bias: { saves: [], pull: (ops, dy, _saved, context) => biasGradient(ops, dy, context) },
});

export const softmax = gradRow("softmax", {
  x: { saves: ["y"], pull: (ops, dy, { y }) => ops.softmaxBackward(dy, y) },
  mask: INTEGER_INPUT,
});
