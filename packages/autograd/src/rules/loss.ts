import { gradRow, INTEGER_INPUT } from "./grad-row.ts";

export const crossEntropy = gradRow("crossEntropy", {
  logits: {
    saves: ["logits", "targets", "max", "logSum"],
    pull: (ops, dy, { logits, targets, max, logSum }, { attrs }) =>
      ops.crossEntropyBackward(dy, logits, targets, max, logSum, attrs),
  },
  targets: INTEGER_INPUT,
});

export const lmHeadLoss = gradRow("lmHeadLoss", {
  // The forward pass computes dh (a residual) with the loss, so under a frozen head neither h nor logits are saved.
  h: { saves: ["dh"], pull: (ops, dy, { dh }) => ops.scaleBy(dh, dy) },
  w: {
    saves: ["h", "w", "targets"],
    pull: (ops, dy, { h, w, targets }, { attrs }) => ops.lmHeadLossBackwardW(dy, h, w, targets, attrs),
  },
  targets: INTEGER_INPUT,
});
