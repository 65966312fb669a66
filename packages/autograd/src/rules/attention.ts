import { gradRow, INTEGER_INPUT } from "./grad-row.ts";

const SAVES = ["q", "k", "v", "y", "lse", "keyMask", "segments"] as const;

export const attention = gradRow(
  "attention",
  {
    q: {
      saves: SAVES,
      pull: (ops, dy, { q, k, v, y, lse, keyMask, segments }, { attrs }) =>
        ops.attentionBackwardQ(dy, q, k, v, y, lse, keyMask, segments, attrs),
    },
    k: {
      saves: SAVES,
      pull: (ops, dy, { q, k, v, y, lse, keyMask, segments }, { attrs }) =>
        ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, segments, attrs)[0],
    },
    v: {
      saves: SAVES,
      pull: (ops, dy, { q, k, v, y, lse, keyMask, segments }, { attrs }) =>
        ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, segments, attrs)[1],
    },
    keyMask: INTEGER_INPUT,
    segments: INTEGER_INPUT,
  },
  {
    inputs: ["k", "v"], // one pass over the queries computes both
    saves: SAVES,
    pull: (ops, dy, { q, k, v, y, lse, keyMask, segments }, attrs) =>
      ops.attentionBackwardKV(dy, q, k, v, y, lse, keyMask, segments, attrs),
  },
);
