import type { HostArray } from "../dtype.ts";
import { defineOp, type KernelContext } from "../op.ts";
import type { Pick } from "../pick.ts";
import type { Tensor } from "../tensor.ts";

const EPS = 2 ** -23;

/** Rows whose target counts; the mean is over these. */
export function countScored(targets: HostArray, ignoreIndex: number): number {
  let count = 0;
  for (const target of targets) if (target !== ignoreIndex) count++;
  return count;
}

/**
 * The two parts of one row's log Σ exp(logits) = max + logSum, logSum = log Σ exp(logits - max). They are never added up
 * in float32: where logits are large, the sum would round logSum away, and with it the gradient.
 */
export function softmaxShift(logits: HostArray, at: number, V: number): { max: number; logSum: number } {
  let max = Number.NEGATIVE_INFINITY;
  for (let v = 0; v < V; v++) max = Math.max(max, logits[at + v]);
  let sum = 0;
  for (let v = 0; v < V; v++) sum += Math.exp(logits[at + v] - max);
  return { max, logSum: Math.log(sum) };
}

/** Targets of a random case, and the index that marks some of them as ignored; the first is mostly scored. */
export function drawTargets(pick: Pick, V: number) {
  const ignoreIndex = pick.oneOf([-100, -1, 0]);
  const targets = (size: number) =>
    Array.from({ length: size }, (_, n) => (n > 0 && pick.chance(0.2) ? ignoreIndex : pick.int(0, V - 1)));
  return { attrs: { ignoreIndex }, values: { targets } };
}

/**
 * Fills max, logSum and nll (the negative log-likelihood, 0 for ignored rows) of each row of logits. `firstRow` is their
 * row, and that of the targets, that belongs to row 0 of the logits.
 */
export function runRowLosses(
  k: KernelContext,
  operands: { logits: Tensor; targets: Tensor; max: Tensor; logSum: Tensor; nll: Tensor },
  extents: { rows: number; firstRow: number; V: number; ignoreIndex: number },
): void {
  const { logits, max, ...rest } = operands;
  const { rows, firstRow, V, ignoreIndex } = extents;
  for (const range of k.split(rows, [logits])) {
    k.run("cross-entropy/row_losses", {
      bind: { logits: k.rows(logits, rows, range), rowMax: max, ...rest },
      params: { n: range.count, v: V, firstRow: firstRow + range.start, ignoreIndex, hasUpstream: 0 },
      grid: range.count,
    });
  }
}

/** loss = Σ nll / number of scored rows, and that number, on the device. */
export function runMeanLoss(
  k: KernelContext,
  operands: { targets: Tensor; nll: Tensor; loss: Tensor },
  extents: { rows: number; ignoreIndex: number },
): void {
  const { targets, nll, loss } = operands;
  k.run("cross-entropy/mean_loss", {
    bind: { targets, nllIn: nll, loss },
    params: { n: extents.rows, v: 0, firstRow: 0, ignoreIndex: extents.ignoreIndex, hasUpstream: 0 },
    grid: 1,
  });
}

/** dlogits = (softmax - one-hot) · dloss / number of scored rows; ignored rows are zero. Over logits when dlogits is null. */
export function runLogitGradients(
  k: KernelContext,
  operands: {
    logits: Tensor;
    targets: Tensor;
    max: Tensor;
    logSum: Tensor;
    dloss: Tensor | null;
    dlogits: Tensor | null;
  },
  extents: { rows: number; firstRow: number; V: number; ignoreIndex: number },
): void {
  const { logits, dlogits, targets, max, logSum, dloss } = operands;
  const { rows, firstRow, V, ignoreIndex } = extents;
  const total = targets.size;
  const scored = k.temp([1]);
  k.run("cross-entropy/count_scored", {
    bind: { targets, scored },
    params: { n: total, v: 0, firstRow: 0, ignoreIndex, hasUpstream: 0 },
    grid: 1,
  });
  for (const range of k.split(rows, [logits, dlogits])) {
    const shared = { targets, rowMaxIn: max, logSumIn: logSum, dloss, scoredIn: scored };
    const window = k.rows(logits, rows, range);
    k.run(`cross-entropy/logit_gradients${dlogits === null ? "_in_place" : ""}`, {
      bind:
        dlogits === null
          ? { dlogits: window, ...shared }
          : { logits: window, dlogits: k.rows(dlogits, rows, range), ...shared },
      params: {
        n: range.count,
        v: V,
        firstRow: firstRow + range.start,
        ignoreIndex,
        hasUpstream: dloss !== null,
      },
      grid: range.count,
    });
  }
}

export const crossEntropy = defineOp({
  name: "crossEntropy",
  doc: "loss = mean over rows with target ≠ ignoreIndex of log Σ exp(logits) - logits[target]; 0 when no row is scored",
  sig: "logits[N,V] targets:i32[N] -> loss:f32[] | max:f32[N] logSum:f32[N]",
  attrs: { ignoreIndex: -100 },
  check: ({ V }) => (V > 0 ? null : "an empty vocabulary has no softmax"),
  reference({ logits, targets, loss, max, logSum }, { N, V }, { ignoreIndex }) {
    let total = 0;
    for (let n = 0; n < N; n++) {
      const row = softmaxShift(logits, n * V, V);
      if (max) max[n] = row.max;
      if (logSum) logSum[n] = row.logSum;
      if (targets[n] !== ignoreIndex) total += row.max - logits[n * V + targets[n]] + row.logSum;
    }
    loss[0] = total / Math.max(1, countScored(targets, ignoreIndex));
  },
  kernel(k, { logits, targets, loss, max, logSum }, { N, V }, { ignoreIndex }) {
    const nll = k.temp([N]);
    const rows = { max: max ?? k.temp([N]), logSum: logSum ?? k.temp([N]), nll };
    runRowLosses(k, { logits, targets, ...rows }, { rows: N, firstRow: 0, V, ignoreIndex });
    runMeanLoss(k, { targets, nll, loss }, { rows: N, ignoreIndex });
  },
  draw: (pick) => {
    const V = pick.int(1, 300);
    return { dims: { N: pick.int(1, 40), V }, ...drawTargets(pick, V) };
  },
  close: { rel: 64 * EPS, abs: 1e-6 }, // as rmsNorm: sums of one sign, and one exp and log
  flops: ({ N, V }) => 4 * N * V,
});

export const crossEntropyBackward = defineOp({
  name: "crossEntropyBackward",
  doc: "dlogits = (softmax(logits) - onehot(target)) · dloss / number of scored rows; ignored rows are 0",
  sig: "dloss:f32[] logits[N,V] targets:i32[N] max:f32[N] logSum:f32[N] -> dlogits[N,V]",
  attrs: { ignoreIndex: -100 },
  reference({ dloss, logits, targets, max, logSum, dlogits }, { N, V }, { ignoreIndex }) {
    const scored = Math.max(1, countScored(targets, ignoreIndex));
    for (let n = 0; n < N; n++) {
      if (targets[n] === ignoreIndex) continue;
      for (let v = 0; v < V; v++) {
        const p = Math.exp(logits[n * V + v] - max[n] - logSum[n]);
        dlogits[n * V + v] = ((p - (v === targets[n] ? 1 : 0)) * dloss[0]) / scored;
      }
    }
  },
  kernel(k, { dloss, logits, targets, max, logSum, dlogits }, { N, V }, { ignoreIndex }) {
    const operands = { logits, targets, max, logSum, dloss, dlogits };
    runLogitGradients(k, operands, { rows: N, firstRow: 0, V, ignoreIndex });
  },
  draw: (pick) => {
    const V = pick.int(1, 300);
    const { attrs, values } = drawTargets(pick, V);
    const max = (size: number) => Array.from({ length: size }, () => 2 + 0.1 * pick.normal());
    const logSum = (size: number) => new Array(size).fill(Math.log(V));
    return { dims: { N: pick.int(1, 40), V }, attrs, values: { ...values, max, logSum } };
  },
  close: { rel: 64 * EPS, abs: 1e-7 },
  flops: ({ N, V }) => 5 * N * V,
});
