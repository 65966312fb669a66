import { gradRow } from "./grad-row.ts";
import { widen } from "./shared.ts";

export const add = gradRow("add", {
  a: { saves: [], pull: (_ops, dy) => dy },
  b: { saves: [], pull: (_ops, dy) => dy },
});

export const mul = gradRow("mul", {
  a: { saves: ["b"], pull: (ops, dy, { b }) => ops.mul(dy, b) },
  b: { saves: ["a"], pull: (ops, dy, { a }) => ops.mul(dy, a) },
});

export const scale = gradRow("scale", {
  x: { saves: [], pull: (ops, dy, _saved, { attrs }) => ops.scale(dy, { factor: attrs.factor }) },
});

export const scaleBy = gradRow("scaleBy", {
  x: { saves: ["s"], pull: (ops, dy, { s }) => ops.scaleBy(dy, s) },
  s: { saves: ["x"], pull: (ops, dy, { x }) => ops.sum(ops.mul(widen(ops, dy, "f32"), x), { axis: null }) },
});

export const cast = gradRow("cast", {
  x: { saves: [], pull: (ops, dy, _saved, { dtype }) => ops.cast(dy, { to: dtype }) },
});

export const sigmoid = gradRow("sigmoid", {
  // σ' = σ(x) σ(-x). From the output alone, y - y², it would vanish where y rounds to 1: a saturated gate could never open.
  x: {
    saves: ["x"],
    pull: (ops, dy, { x }) => ops.mul(ops.mul(dy, ops.sigmoid(x)), ops.sigmoid(ops.scale(x, { factor: -1 }))),
  },
});

export const silu = gradRow("silu", {
  x: {
    saves: ["x"],
    // silu(x) = siluMul(x, 1), whose backward op holds the derivative.
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
    gate: { saves: ["gate", "up"], pull: (ops, dy, { gate, up }) => ops.siluMulBackward(dy, gate, up)[0] },
    up: { saves: ["gate"], pull: (ops, dy, { gate }) => ops.mul(dy, ops.silu(gate)) },
  },
  {
    inputs: ["gate", "up"],
    saves: ["gate", "up"],
    pull: (ops, dy, { gate, up }) => ops.siluMulBackward(dy, gate, up),
  },
);
