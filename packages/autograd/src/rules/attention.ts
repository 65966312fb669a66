import { gradRow } from "./grad-row.ts";

export const attention = gradRow(
  "attention",
  {
    q: {
      saves: ["q", "k", "v", "y", "lse", "keyMask"],
      pull: (ops, dy, { q, k, v, y, lse, keyMask }, { attrs }) =>
        ops.attentionBackwardQ(dy, q, k, v, y, lse, keyMask, attrs),
    },
    k: {
      saves: ["q", "k", "v", "y", "lse", "keyMask"],
      pull: (ops, dy, { q, k, v, y, lse, keyMask }, { attrs }) =>
        ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, attrs)[0],
    },
    v: {
      saves: ["q", "k", "v", "y", "lse", "keyMask"],
      pull: (ops, dy, { q, k, v, y, lse, keyMask }, { attrs }) =>
        ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, attrs)[1],
    },
    keyMask: { none: "integer input" },
  },
  {
    inputs: ["k", "v"], // one pass over the queries gives both
    saves: ["q", "k", "v", "y", "lse", "keyMask"],
    pull: (ops, dy, { q, k, v, y, lse, keyMask }, attrs) =>
      ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, attrs),
  },
);
