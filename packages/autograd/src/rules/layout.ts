import { gradRow, INTEGER_INPUT } from "./grad-row.ts";

export const reshape = gradRow("reshape", {
  x: { saves: [], pull: (ops, dy, _saved, { shape }) => ops.reshape(dy, { shape }) },
});

export const slice = gradRow("slice", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis, start }, shape }) =>
      ops.sliceBackward(dy, { axis, start, length: shape.at(axis)! }),
  },
});

export const sliceBackward = gradRow("sliceBackward", {
  dy: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis, start }, shape }) =>
      ops.slice(dy, { axis, start, count: shape.at(axis)! }),
  },
});

export const embedding = gradRow("embedding", {
  ids: INTEGER_INPUT,
  table: {
    saves: ["ids"],
    pull: (ops, dy, { ids }, { shape }) => ops.embeddingBackward(dy, ids, { rows: shape[0] }),
  },
});

export const selectRows = gradRow("selectRows", {
  // Each row is selected at most once, so the gradient is the inverse selection.
  x: { saves: ["rows", "back"], pull: (ops, dy, { rows, back }) => ops.selectRows(dy, back, rows) },
  rows: INTEGER_INPUT,
  back: INTEGER_INPUT,
});

export const transpose = gradRow("transpose", {
  x: {
    saves: [],
    // The gradient is transposed by the inverse permutation.
    pull: (ops, dy, _saved, { attrs: { permutation } }) =>
      ops.transpose(dy, { permutation: permutation.map((_, axis) => permutation.indexOf(axis)) }),
  },
});

export const concat = gradRow("concat", {
  a: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis }, shape }) =>
      ops.slice(dy, { axis, start: 0, count: shape.at(axis)! }),
  },
  b: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis }, shape }) => {
      const count = shape.at(axis)!;
      return ops.slice(dy, { axis, start: dy.shape.at(axis)! - count, count });
    },
  },
});
