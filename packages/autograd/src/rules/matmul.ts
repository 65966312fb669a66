import { gradRow } from "./grad-row.ts";
import { asRows, biasGradient, widen } from "./shared.ts";

// The gradients of the three matmul forms are matmuls of another form, so nothing is transposed in memory. A matmul has the
// dtype of its first operand, so that one is cast to f32 where the gradient is f32.

export const matmul = gradRow("matmul", {
  a: { saves: ["b"], pull: (ops, dy, { b }, { dtype }) => ops.matmulNT(widen(ops, dy, dtype), b) },
  b: { saves: ["a"], pull: (ops, dy, { a }, { dtype }) => ops.matmulTN(widen(ops, a, dtype), dy) },
});

export const matmulNT = gradRow("matmulNT", {
  a: { saves: ["b"], pull: (ops, dy, { b }, { dtype }) => ops.matmul(widen(ops, dy, dtype), b) },
  b: { saves: ["a"], pull: (ops, dy, { a }, { dtype }) => ops.matmulTN(widen(ops, dy, dtype), a) },
});

export const matmulTN = gradRow("matmulTN", {
  a: { saves: ["b"], pull: (ops, dy, { b }, { dtype }) => ops.matmulNT(widen(ops, b, dtype), dy) },
  b: { saves: ["a"], pull: (ops, dy, { a }, { dtype }) => ops.matmul(widen(ops, a, dtype), dy) },
});

export const linear = gradRow("linear", {
  // w[O,I]: dx = dy w, dw = dyᵀ x, dbias = Σ_n dy, over the N rows of x.
  x: {
    saves: ["w"],
    pull: (ops, dy, { w }, { shape, dtype }) =>
      ops.reshape(ops.matmul(widen(ops, asRows(ops, dy), dtype), w), { shape }),
  },
  w: {
    saves: ["x"],
    readsF16: true,
    pull: (ops, dy, { x }, { dtype }) => ops.matmulTN(widen(ops, asRows(ops, dy), dtype), asRows(ops, x)),
  },
  bias: { saves: [], pull: (ops, dy, _saved, context) => biasGradient(ops, dy, context) },
});
