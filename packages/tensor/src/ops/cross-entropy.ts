import { EPS, type HostArray } from "../dtype.ts";
import { defineOp, type KernelContext, type RowRange, SIGNED_WORD } from "../op.ts";
import { sizeOf } from "../shape.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { drawRows, partGroups, rowGroups } from "./row-groups.ts";

/** Number of rows whose target is not ignored; the mean is over these. */
export function countScored(targets: HostArray, ignoreIndex: number): number {
  let count = 0;
  for (const target of targets) if (target !== ignoreIndex) count++;
  return count;
}

/** Ignored targets and label smoothing. */
export interface LossAttrs {
  readonly ignoreIndex: number;
  /** The share s of a target that is spread evenly over all classes: (1 - s) onehot + s / V. */
  readonly labelSmoothing: number;
}

/** Describes what is wrong with a loss over V classes, or null. */
export const checkLoss = ({ V }: Dims): string | null =>
  V === 0 ? "an empty vocabulary has no softmax" : null;

export const LOSS_ATTRS = { ignoreIndex: -100, labelSmoothing: 0 };
export const LOSS_RANGES = { ignoreIndex: SIGNED_WORD, labelSmoothing: { least: 0, most: 1 } };

/**
 * Whether a target is one of V classes. One that is neither a class nor ignored is a mistake in the data, such as labels of another
 * tokenizer: it makes the loss, and its row of the gradient, NaN.
 */
const isClass = (target: number, V: number): boolean => target >= 0 && target < V;

/**
 * Negative log-likelihood of one row of logits under its smoothed target. log Σ exp(logits) is two numbers, max + logSum with
 * logSum = log Σ exp(logits - max), which are never added in f32: for large logits, the sum would round logSum away and with it
 * the gradient.
 */
export function rowLoss(
  logits: HostArray,
  at: number,
  V: number,
  target: number,
  smoothing: number,
): { nll: number; max: number; logSum: number } {
  let max = Number.NEGATIVE_INFINITY;
  for (let v = 0; v < V; v++) max = Math.max(max, logits[at + v]);
  let [sum, below] = [0, 0];
  for (let v = 0; v < V; v++) {
    sum += Math.exp(logits[at + v] - max);
    below += max - logits[at + v];
  }
  const logSum = Math.log(sum);
  const own = isClass(target, V) ? logits[at + target] : Number.NaN;
  const nll = (1 - smoothing) * (max - own) + (smoothing > 0 ? (smoothing * below) / V : 0) + logSum; // below may be infinite
  return { nll, max, logSum };
}

/** The weight of class v in the smoothed target. */
export const targetWeight = (v: number, target: number, V: number, smoothing: number): number =>
  isClass(target, V) ? (v === target ? 1 - smoothing : 0) + smoothing / V : Number.NaN;

/** Draws targets and the index that ignores some of them; the first target is usually not ignored. */
export function drawTargets(pick: TestRandom, V: number) {
  const ignoreIndex = pick.oneOf([-100, -1, 0]);
  const targets = (size: number) =>
    Array.from({ length: size }, (_, n) => (n > 0 && pick.chance(0.2) ? ignoreIndex : pick.int(0, V - 1)));
  return { attrs: { ignoreIndex, labelSmoothing: pick.oneOf([0, 0, 0.1, 1]) }, values: { targets } };
}

/** Extents of the logits, and the row of targets that belongs to their first row. */
interface LossExtents extends LossAttrs {
  readonly rows: number;
  readonly firstRow: number;
  readonly V: number;
  /** Logits are stored in blocks of this many columns, one [rows, block] after the other. Default: V. */
  readonly blockColumns?: number;
}

/** Parameters of the entry points of cross-entropy.wgsl that read logits, for a range of their rows. */
const paramsOf = (
  { firstRow, V, blockColumns = V, ignoreIndex, labelSmoothing: smoothing }: LossExtents,
  { start, count }: RowRange,
) => ({ n: count, v: V, block: blockColumns, firstRow: firstRow + start, ignoreIndex, smoothing });

/** Parameters of the entry points of cross-entropy.wgsl that read no logits. */
const TARGETS_ALONE = { v: 0, block: 0, each: 1, firstRow: 0, hasUpstream: 0, smoothing: 0 };

/**
 * Computes max, logSum and nll (the negative log-likelihood, 0 for ignored rows) of each row of logits. Row 0 of the logits
 * belongs to row `firstRow` of the targets and of these outputs.
 */
export function runRowLosses(
  k: KernelContext,
  operands: { logits: Tensor; targets: Tensor; max: Tensor; logSum: Tensor; nll: Tensor },
  extents: LossExtents,
): void {
  const { logits, max, ...rest } = operands;
  const { rows, V: allColumns, blockColumns: columns = allColumns } = extents;
  for (const range of k.split(rows, [logits])) {
    const { consts, each, grid } = rowGroups(k.profile, { rows: range.count, columns, allColumns });
    k.run("cross-entropy/row_losses", {
      bind: { logits: k.rows(logits, rows, range), rowMax: max, ...rest },
      params: { ...paramsOf(extents, range), each, hasUpstream: 0 },
      grid,
      consts,
    });
  }
}

/** Dispatches loss = Σ nll / number of scored rows. */
export function runMeanLoss(
  k: KernelContext,
  operands: { targets: Tensor; nll: Tensor; loss: Tensor },
  extents: { rows: number; ignoreIndex: number },
): void {
  const { targets, nll, loss } = operands;
  k.run("cross-entropy/mean_loss", {
    bind: { targets, nllIn: nll, loss },
    params: { n: extents.rows, ignoreIndex: extents.ignoreIndex, ...TARGETS_ALONE },
    grid: 1,
    consts: rowGroups(k.profile, { rows: 1, columns: extents.rows }).consts,
  });
}

/** dlogits = (softmax - one-hot) · dloss / number of scored rows; 0 for ignored rows. In place of logits if dlogits is null. */
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
  extents: LossExtents,
): void {
  const { logits, dlogits, targets, max, logSum, dloss } = operands;
  const { rows, V: allColumns, blockColumns: columns = allColumns, ignoreIndex } = extents;
  const total = targets.size;
  const scored = k.temp([1]);
  k.run("cross-entropy/count_scored", {
    bind: { targets, scored },
    params: { n: total, ignoreIndex, ...TARGETS_ALONE },
    grid: 1,
    consts: rowGroups(k.profile, { rows: 1, columns: total }).consts,
  });
  for (const range of k.split(rows, [logits, dlogits])) {
    const shared = { targets, rowMaxIn: max, logSumIn: logSum, dloss, scoredIn: scored };
    const window = k.rows(logits, rows, range);
    const { consts, each, grid } = partGroups(k.profile, { rows: range.count, columns, allColumns });
    k.run(`cross-entropy/logit_gradients${dlogits === null ? "_in_place" : ""}`, {
      bind:
        dlogits === null
          ? { dlogits: window, ...shared }
          : { logits: window, dlogits: k.rows(dlogits, rows, range), ...shared },
      params: { ...paramsOf(extents, range), each, hasUpstream: dloss !== null },
      grid,
      consts,
    });
  }
}

export const crossEntropy = defineOp({
  name: "crossEntropy",
  doc:
    "loss = mean over rows with target ≠ ignoreIndex of log Σ exp(logits) - logits[target]; 0 when no row is scored, NaN when a " +
    "target is no class; labelSmoothing s puts (1 - s) logits[target] + s mean(logits) in the place of logits[target]",
  sig: "logits[N,V] targets:i32[N] -> loss:f32[] | max:f32[N] logSum:f32[N]",
  attrs: LOSS_ATTRS,
  ranges: LOSS_RANGES,
  check: checkLoss,
  reference({ logits, targets, loss, max, logSum }, { N, V }, { ignoreIndex, labelSmoothing }) {
    let total = 0;
    for (let n = 0; n < N; n++) {
      const row = rowLoss(logits, n * V, V, targets[n], labelSmoothing);
      if (max) max[n] = row.max;
      if (logSum) logSum[n] = row.logSum;
      if (targets[n] !== ignoreIndex) total += row.nll;
    }
    loss[0] = total / Math.max(1, countScored(targets, ignoreIndex));
  },
  kernel(k, { logits, targets, loss, max, logSum }, { N, V }, attrs) {
    const nll = k.temp([N]);
    const rows = { max: max ?? k.temp([N]), logSum: logSum ?? k.temp([N]), nll };
    runRowLosses(k, { logits, targets, ...rows }, { rows: N, firstRow: 0, V, ...attrs });
    runMeanLoss(k, { targets, nll, loss }, { rows: N, ignoreIndex: attrs.ignoreIndex });
  },
  draw: (pick) => {
    const { N, C: V } = drawRows(pick, 1, 40, 1);
    return { dims: { N: Math.max(1, sizeOf(N)), V }, ...drawTargets(pick, V) };
  },
  close: { rel: 64 * EPS, abs: 1e-6 }, // as rmsNorm: sums of one sign, and one exp and log
  flops: ({ N, V }) => 4 * N * V,
});

export const crossEntropyBackward = defineOp({
  name: "crossEntropyBackward",
  doc: "dlogits = (softmax(logits) - (1 - s) onehot(target) - s / V) · dloss / number of scored rows; ignored rows are 0",
  sig: "dloss:f32[] logits[N,V] targets:i32[N] max:f32[N] logSum:f32[N] -> dlogits[N,V]",
  attrs: LOSS_ATTRS,
  ranges: LOSS_RANGES,
  reference({ dloss, logits, targets, max, logSum, dlogits }, { N, V }, { ignoreIndex, labelSmoothing }) {
    const scored = countScored(targets, ignoreIndex);
    for (let n = 0; n < N; n++) {
      if (targets[n] === ignoreIndex) continue;
      for (let v = 0; v < V; v++) {
        const p = Math.exp(logits[n * V + v] - max[n] - logSum[n]);
        dlogits[n * V + v] = ((p - targetWeight(v, targets[n], V, labelSmoothing)) * dloss[0]) / scored;
      }
    }
  },
  kernel: (k, io, { N, V }, attrs) => runLogitGradients(k, io, { rows: N, firstRow: 0, V, ...attrs }),
  draw: (pick) => {
    const { N, C: V } = drawRows(pick, 1, 40, 1);
    const { attrs, values } = drawTargets(pick, V);
    const max = (size: number) => Array.from({ length: size }, () => 2 + 0.1 * pick.normal());
    const logSum = (size: number) => new Array(size).fill(Math.log(V));
    return { dims: { N: Math.max(1, sizeOf(N)), V }, attrs, values: { ...values, max, logSum } };
  },
  // p - target may cancel; exp is a few ulp off, and so is its argument after two differences; times dloss, near 1.
  close: { rel: 64 * EPS, abs: 16 * EPS },
  flops: ({ N, V }) => 5 * N * V,
});
