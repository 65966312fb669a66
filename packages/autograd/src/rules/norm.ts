import { gradRow } from "./grad-row.ts";

export const rmsNorm = gradRow("rmsNorm", {
  x: {
    saves: ["x", "rstd", "gain"],
    pull: (ops, dy, { x, rstd, gain }) => ops.rmsNormBackwardX(dy, x, rstd, gain),
  },
  gain: { saves: ["x", "rstd"], pull: (ops, dy, { x, rstd }) => ops.rmsNormBackwardGain(dy, x, rstd) },
});

export const rope = gradRow("rope", {
  // A rotation is orthogonal: its gradient is the rotation back.
  x: {
    saves: ["cos", "sin"],
    pull: (ops, dy, { cos, sin }, { attrs }) => ops.rope(dy, cos, sin, { inverse: !attrs.inverse }),
  },
  cos: { none: "a table of constants" },
  sin: { none: "a table of constants" },
});
