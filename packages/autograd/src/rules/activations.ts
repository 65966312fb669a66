import { gradRow, SECOND_ORDER } from "./grad-row.ts";

// rules/index.ts spreads this file into the gradient table: it exports nothing but rows.

// The slopes are computed from x: from the output, y - y² would be 0 where sigmoid or tanh rounds to 1, and a saturated gate would
// stay so.

export const sigmoid = gradRow("sigmoid", {
  x: { saves: ["x"], readsF16: true, pull: (ops, dy, { x }) => ops.sigmoidBackward(dy, x) },
});

export const sigmoidBackward = SECOND_ORDER;

export const silu = gradRow("silu", {
  x: { saves: ["x"], readsF16: true, pull: (ops, dy, { x }) => ops.siluBackward(dy, x) },
});

export const siluBackward = SECOND_ORDER;

export const siluMul = gradRow(
  "siluMul",
  {
    gate: {
      saves: ["gate", "up"],
      readsF16: true,
      pull: (ops, dy, { gate, up }) => ops.siluMulBackward(dy, gate, up)[0],
    },
    up: { saves: ["gate"], pull: (ops, dy, { gate }) => ops.mul(dy, ops.silu(gate)) },
  },
  {
    inputs: ["gate", "up"],
    saves: ["gate", "up"],
    readsF16: true,
    pull: (ops, dy, { gate, up }) => ops.siluMulBackward(dy, gate, up),
  },
);

export const siluMulBackward = SECOND_ORDER;

export const relu = gradRow("relu", {
  x: { saves: ["y"], pull: (ops, dy, { y }) => ops.mul(dy, ops.sign(y)) },
});

export const tanh = gradRow("tanh", {
  x: { saves: ["x"], readsF16: true, pull: (ops, dy, { x }) => ops.tanhBackward(dy, x) },
});

export const tanhBackward = SECOND_ORDER;

export const gelu = gradRow("gelu", {
  x: { saves: ["x"], readsF16: true, pull: (ops, dy, { x }, { attrs }) => ops.geluBackward(dy, x, attrs) },
});

export const geluBackward = SECOND_ORDER;
