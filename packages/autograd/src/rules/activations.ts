import { gradRow, SECOND_ORDER } from "./grad-row.ts";

// rules/index.ts spreads this file into the gradient table: it exports nothing but rows.

export const sigmoid = gradRow("sigmoid", {
  // σ' = σ(x) σ(-x). Computed from the output, as y - y², it would be 0 where y rounds to 1, and a saturated gate would stay so.
  x: {
    saves: ["x"],
    pull: (ops, dy, { x }) => ops.mul(ops.mul(dy, ops.sigmoid(x)), ops.sigmoid(ops.scale(x, { factor: -1 }))),
  },
});

export const silu = gradRow("silu", {
  x: {
    saves: ["x"],
    // silu(x) = siluMul(x, 1), and siluMulBackward computes the derivative.
    pull(ops, dy, { x }) {
      const ones = ops.scale(x, { factor: 0 });
      ops.fill(ones, { value: 1 });
      return ops.siluMulBackward(dy, x, ones)[0];
    },
  },
});

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
  // 1 - tanh² = 4 σ(2x) σ(-2x). Computed from the output it would be 0 where y rounds to 1, as for sigmoid.
  x: {
    saves: ["x"],
    pull(ops, dy, { x }) {
      const slope = ops.mul(
        ops.sigmoid(ops.scale(x, { factor: 2 })),
        ops.sigmoid(ops.scale(x, { factor: -2 })),
      );
      return ops.mul(ops.scale(dy, { factor: 4 }), slope);
    },
  },
});

export const gelu = gradRow("gelu", {
  x: { saves: ["x"], pull: (ops, dy, { x }, { attrs }) => ops.geluBackward(dy, x, attrs) },
});

export const geluBackward = SECOND_ORDER;
