import { gradRow } from "./grad-row.ts";

export const dropout = gradRow("dropout", {
  // attrs hold the seed and offset of the draws, so the backward pass drops the same elements.
  x: { saves: [], pull: (ops, dy, _saved, { attrs }) => ops.dropout(dy, attrs) },
});
