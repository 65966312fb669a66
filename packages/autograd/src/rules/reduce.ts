import { type Ops, type Shape, sizeOf, type Tensor } from "@sidenet/tensor";
import { gradRow, INTEGER_INPUT, INTEGER_OUTPUT, SECOND_ORDER } from "./grad-row.ts";
import { widen } from "./shared.ts";

// rules/index.ts spreads this file into the gradient table: it exports nothing but rows.

export const sum = gradRow("sum", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis }, shape }) => ops.broadcast(dy, { shape, axis }),
  },
});

export const broadcast = gradRow("broadcast", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis }, dtype }) => ops.sum(widen(ops, dy, dtype), { axis }),
  },
});

export const mean = gradRow("mean", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis }, shape }) => {
      const count = Math.max(axis === null ? sizeOf(shape) : shape.at(axis)!, 1);
      return ops.broadcast(ops.scale(dy, { factor: 1 / count }), { shape, axis });
    },
  },
});

/** Scatters dy to the elements that max or min chose, zero elsewhere. `index` keeps the reduced axis, with extent 1. */
function scatterToChosen(ops: Ops, dy: Tensor, index: Tensor, shape: Shape, axis: number | null): Tensor {
  const length = axis === null ? sizeOf(shape) : shape.at(axis)!;
  const chosen = ops.reshape(dy, { shape: index.shape });
  return ops.reshape(ops.gatherAlongBackward(chosen, index, { axis: axis ?? 0, length }), { shape });
}

export const max = gradRow("max", {
  x: {
    saves: ["index"],
    pull: (ops, dy, { index }, { attrs, shape }) => scatterToChosen(ops, dy, index, shape, attrs.axis),
  },
});

export const min = gradRow("min", {
  x: {
    saves: ["index"],
    pull: (ops, dy, { index }, { attrs, shape }) => scatterToChosen(ops, dy, index, shape, attrs.axis),
  },
});

export const argmax = INTEGER_OUTPUT;
export const topK = INTEGER_OUTPUT;

export const gatherAlong = gradRow("gatherAlong", {
  x: {
    saves: ["ids"],
    pull: (ops, dy, { ids }, { attrs: { axis }, shape, dtype }) =>
      ops.gatherAlongBackward(widen(ops, dy, dtype), ids, { axis, length: shape.at(axis)! }),
  },
  ids: INTEGER_INPUT,
});

export const gatherAlongBackward = SECOND_ORDER;

export const cumsum = gradRow("cumsum", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis, reverse }, dtype }) =>
      ops.cumsum(widen(ops, dy, dtype), { axis, reverse: !reverse }),
  },
});
