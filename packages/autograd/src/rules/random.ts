import { gradRow } from "./grad-row.ts";

export const dropout = gradRow("dropout", {
  // The mask is made again from the same numbers.
  x: { saves: [], pull: (ops, dy, _saved, { attrs }) => ops.dropout(dy, attrs) },
});
