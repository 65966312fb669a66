/**
 * The language-model head and its loss, never holding [N, V] logits: tokens go through in chunks whose logits fit a fixed
 * workspace. A frozen head needs only dh, so the forward pass makes it while the logits of a chunk are at hand; that saves
 * the backward pass a third product with W. After [CCE] (2411.09009), with chunks of tokens instead of vocabulary tiles.
 */

import { elementBytes, type HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext, type RowRange } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import {
  checkLoss,
  countScored,
  drawTargets,
  rowLoss,
  runLogitGradients,
  runMeanLoss,
  runRowLosses,
  softmaxShift,
  targetWeight,
} from "./cross-entropy.ts";
import { runMatmul } from "./matmul-plan.ts";

const EPS = 2 ** -23;
/** `chunkBytes` is what the logits of a chunk may take, unless `chunkTokens` says how many rows. */
export const CHUNKS = { chunkTokens: 0, chunkBytes: 2 ** 25 };
/** The largest alignment that WebGPU may ask of a binding's offset. */
const BINDING_ALIGNMENT = 256;

/** Ranges of tokens whose logits fit the workspace. */
export function tokenChunks(h: Tensor, V: number, { chunkTokens, chunkBytes }: typeof CHUNKS): RowRange[] {
  if (chunkTokens < 0 || !Number.isInteger(chunkTokens)) {
    throw new SidenetError("T-ATTR", `lmHeadLoss: chunkTokens ${chunkTokens} is not a whole number >= 0.`);
  }
  if (!(chunkBytes > 0)) {
    throw new SidenetError("T-ATTR", `lmHeadLoss: chunkBytes ${chunkBytes} is not a number above 0.`);
  }
  const wanted = chunkTokens > 0 ? chunkTokens : chunkBytes / (4 * V);
  const N = h.shape[0];
  const step = BINDING_ALIGNMENT / elementBytes(h.dtype); // windows of h and dh start where a binding may
  const rows = Math.max(1, Math.floor(wanted / step)) * step;
  const chunks: RowRange[] = [];
  for (let start = 0; start < N; start += rows) chunks.push({ start, count: Math.min(rows, N - start) });
  return chunks;
}

/** The logits of one chunk of tokens, h_c · Wᵀ. */
function chunkLogits(k: KernelContext, h: Tensor, w: Tensor, range: RowRange, logits: Tensor): void {
  const N = h.shape[0];
  const [V, C] = w.shape;
  const x = k.rows(h, N, range);
  runMatmul(k, "nt", { a: x, b: w, y: logits }, { P: 1, M: range.count, K: C, N: V });
}

/** Loss and d loss / d h in double, row by row. */
export function referenceHeadLoss(
  { h, w, targets, loss, dh }: Record<"h" | "w" | "targets" | "loss", HostArray> & { dh: HostArray | null },
  { N, C, V }: { N: number; C: number; V: number },
  { ignoreIndex, labelSmoothing }: { ignoreIndex: number; labelSmoothing: number },
): void {
  const scored = Math.max(1, countScored(targets, ignoreIndex));
  const logits = new Float64Array(V);
  let total = 0;
  for (let n = 0; n < N; n++) {
    if (targets[n] === ignoreIndex) continue;
    for (let v = 0; v < V; v++) {
      let dot = 0;
      for (let c = 0; c < C; c++) dot += h[n * C + c] * w[v * C + c];
      logits[v] = dot;
    }
    const { max, logSum, nll } = rowLoss(logits, 0, V, targets[n], labelSmoothing);
    total += nll;
    if (!dh) continue;
    for (let v = 0; v < V; v++) {
      const d =
        (Math.exp(logits[v] - max - logSum) - targetWeight(v, targets[n], V, labelSmoothing)) / scored;
      for (let c = 0; c < C; c++) dh[n * C + c] += d * w[v * C + c];
    }
  }
  loss[0] = total / scored;
}

export const lmHeadLoss = defineOp({
  name: "lmHeadLoss",
  doc: "crossEntropy(h · wᵀ, targets) in chunks of tokens; the residual dh is d loss / d h",
  sig: "h[N,C] w[V,C] targets:i32[N] -> loss:f32[] | dh[N,C]",
  attrs: { ignoreIndex: -100, labelSmoothing: 0, ...CHUNKS },
  check: checkLoss,
  reference: (io, { N, C, V }, attrs) => referenceHeadLoss(io, { N, C, V }, attrs),
  kernel(k, { h, w, targets, loss, dh }, { N, C, V }, { ignoreIndex, labelSmoothing, ...chunking }) {
    const chunks = tokenChunks(h, V, chunking);
    const nll = k.temp([N]);
    const shift = { max: k.temp([N]), logSum: k.temp([N]) };
    const logits = chunks.length > 0 ? k.temp([chunks[0].count, V]) : null;
    for (const range of chunks) {
      const rows = range.count;
      const extents = { rows, firstRow: range.start, V, ignoreIndex, labelSmoothing };
      const l = k.rows(logits!, logits!.shape[0], { start: 0, count: rows });
      chunkLogits(k, h, w, range, l);
      runRowLosses(k, { logits: l, targets, ...shift, nll }, extents);
      if (dh === null) continue;
      runLogitGradients(k, { logits: l, targets, ...shift, dloss: null, dlogits: null }, extents);
      runMatmul(k, "nn", { a: l, b: w, y: k.rows(dh, N, range) }, { P: 1, M: rows, K: V, N: C });
    }
    runMeanLoss(k, { targets, nll, loss }, { rows: N, ignoreIndex });
  },
  draw: (pick) => {
    const V = pick.int(1, 200);
    const { attrs, values } = drawTargets(pick, V);
    const dims = { N: pick.int(1, 150), C: pick.int(1, 70), V };
    return { dims, values, attrs: { ...attrs, chunkTokens: pick.oneOf([0, 64]) } };
  },
  // Logits carry a sum of C products; the exponential turns their absolute error into a relative one.
  close: ({ C, V }) => ({ rel: (64 + 4 * Math.sqrt(C * V)) * EPS, abs: 1e-6 }),
  // dh takes a second product with W and the gradients of the logits.
  flops: ({ N, C, V }, _attrs, has) => (has("dh") ? 2 : 1) * (2 * N * C * V + 4 * N * V),
});

export const lmHeadLossBackwardW = defineOp({
  name: "lmHeadLossBackwardW",
  doc: "dw = dloss · d loss / d w of lmHeadLoss, the logits of each chunk made again",
  sig: "dloss:f32[] h[N,C] w[V,C] targets:i32[N] -> dw:f32[V,C]",
  attrs: { ignoreIndex: -100, labelSmoothing: 0, ...CHUNKS },
  reference({ dloss, h, w, targets, dw }, { N, C, V }, { ignoreIndex, labelSmoothing }) {
    const scored = Math.max(1, countScored(targets, ignoreIndex));
    const logits = new Float64Array(V);
    for (let n = 0; n < N; n++) {
      if (targets[n] === ignoreIndex) continue;
      for (let v = 0; v < V; v++) {
        let dot = 0;
        for (let c = 0; c < C; c++) dot += h[n * C + c] * w[v * C + c];
        logits[v] = dot;
      }
      const { max, logSum } = softmaxShift(logits, 0, V);
      for (let v = 0; v < V; v++) {
        const d =
          ((Math.exp(logits[v] - max - logSum) - targetWeight(v, targets[n], V, labelSmoothing)) * dloss[0]) /
          scored;
        for (let c = 0; c < C; c++) dw[v * C + c] += d * h[n * C + c];
      }
    }
  },
  kernel(k, { dloss, h, w, targets, dw }, { N, C, V }, { ignoreIndex, labelSmoothing, ...chunking }) {
    const chunks = tokenChunks(h, V, chunking);
    const shift = { max: k.temp([N]), logSum: k.temp([N]) };
    const nll = k.temp([N]);
    const most = chunks[0]?.count ?? 1;
    const logits = k.temp([most, V]);
    for (const [i, range] of chunks.entries()) {
      const part = { start: 0, count: range.count };
      const l = k.rows(logits, most, part);
      const extents = { rows: range.count, firstRow: range.start, V, ignoreIndex, labelSmoothing };
      chunkLogits(k, h, w, range, l);
      runRowLosses(k, { logits: l, targets, ...shift, nll }, extents);
      runLogitGradients(k, { logits: l, targets, ...shift, dloss, dlogits: null }, extents);
      const io = { a: l, b: k.rows(h, N, range), y: dw };
      runMatmul(k, "tn", io, { P: 1, M: V, K: range.count, N: C, accumulate: i > 0 });
    }
  },
  draw: (pick) => {
    const V = pick.int(1, 200);
    const { attrs, values } = drawTargets(pick, V);
    const dims = { N: pick.int(1, 150), C: pick.int(1, 70), V };
    return { dims, values, attrs: { ...attrs, chunkTokens: pick.oneOf([0, 64]) } };
  },
  close: ({ N, C, V }) => ({ rel: (64 + 4 * Math.sqrt(C * V) + Math.sqrt(N)) * EPS, abs: 1e-6 }),
  flops: ({ N, C, V }) => 4 * N * C * V + 8 * N * V,
});
