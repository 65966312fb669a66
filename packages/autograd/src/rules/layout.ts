import { gradRow } from "./grad-row.ts";
import { widen } from "./shared.ts";

export const reshape = gradRow("reshape", {
  x: { saves: [], pull: (ops, dy, _saved, { shape }) => ops.reshape(dy, { shape }) },
});

export const slice = gradRow("slice", {
  x: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis, start }, shape }) =>
      ops.sliceBackward(dy, { axis, start, length: shape[axis] }),
  },
});

export const sliceBackward = gradRow("sliceBackward", {
  dy: {
    saves: [],
    pull: (ops, dy, _saved, { attrs: { axis, start }, shape }) =>
      ops.slice(dy, { axis, start, count: shape[axis] }),
  },
});

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

export const embedding = gradRow("embedding", {
  ids: { none: "integer input" },
  table: {
    saves: ["ids"],
    pull: (ops, dy, { ids }, { shape }) => ops.embeddingBackward(dy, ids, { rows: shape[0] }),
  },
});
