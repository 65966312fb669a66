import { EPS } from "../dtype.ts";
import { defineOp, type KernelContext, NO_ROWS, NOT_NEGATIVE } from "../op.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import { columnGroups, drawRows, rowGroups } from "./row-groups.ts";

// Error of a float32 sum of C squares by LANES partial sums: at most about (C / LANES + log2 LANES) roundings, and all
// terms have one sign, so nothing cancels. With C <= 16,384 and 8 lanes or more, 64 eps is ample.
const CLOSE = { rel: 64 * EPS, abs: 1e-7 };

/** Dispatches y and what is kept of each row. `centered` has the operands of layerNorm; null is rmsNorm. */
export function runNorm(
  k: KernelContext,
  { x, gain, y, rstd }: { x: Tensor; gain: Tensor | null; y: Tensor; rstd: Tensor | null },
  centered: { bias: Tensor | null; mean: Tensor | null } | null,
  { N, C }: Dims,
  eps: number,
): void {
  for (const range of k.split(N, [x, y, centered?.mean ?? null, rstd])) {
    const { consts, vectors, each, grid } = rowGroups(k.profile, { rows: range.count, columns: C });
    const kept = (perRow: Tensor | null) => (perRow ? k.rows(perRow, N, range) : k.temp([range.count]));
    const [hasGain, hasBias] = [gain !== null, centered !== null && centered.bias !== null];
    k.run("norm/forward", {
      bind: {
        x: k.rows(x, N, range),
        gain,
        y: k.rows(y, N, range),
        ...(centered && { bias: centered.bias, mean: kept(centered.mean) }),
        rstd: kept(rstd),
      },
      params: { n: range.count, c: C, vectors, each, eps, hasGain, hasBias, accumulate: false },
      grid,
      consts: { ...consts, CENTERED: Number(centered !== null) },
    });
  }
}

/** Parameters of the gradients that only the other entry points use. */
const UNUSED = { eps: 0, hasBias: false };

/** Dispatches dx; the mean is that of layerNorm, or null for rmsNorm. */
export function runNormBackwardX(
  k: KernelContext,
  io: { dy: Tensor; x: Tensor; mean: Tensor | null; rstd: Tensor; gain: Tensor | null; dx: Tensor },
  { N, C }: Dims,
): void {
  const { dy, x, mean, rstd, gain, dx } = io;
  for (const range of k.split(N, [dy, x, mean, rstd, dx])) {
    const extents = { rows: range.count, columns: C, operands: 2 };
    const { consts, vectors, each, grid } = rowGroups(k.profile, extents);
    const hasGain = gain !== null;
    k.run("norm/backward_x", {
      bind: {
        x: k.rows(x, N, range),
        gain,
        y: k.rows(dx, N, range),
        ...(mean && { meanIn: k.rows(mean, N, range) }),
        rstdIn: k.rows(rstd, N, range),
        dy: k.rows(dy, N, range),
      },
      params: { ...UNUSED, n: range.count, c: C, vectors, each, hasGain, accumulate: false },
      grid,
      consts: { ...consts, CENTERED: Number(mean !== null) },
    });
  }
}

/** Dispatches dgain; the mean is that of layerNorm, or null for rmsNorm. */
export function runNormBackwardGain(
  k: KernelContext,
  { dy, x, mean, rstd, dgain }: { dy: Tensor; x: Tensor; mean: Tensor | null; rstd: Tensor; dgain: Tensor },
  { N, C }: Dims,
): void {
  const parts = N === 0 ? [NO_ROWS] : k.split(N, [dy, x, mean, rstd]);
  for (const range of parts) {
    const { consts, vectors, grid } = columnGroups(k.profile, C);
    const accumulate = range.start > 0;
    k.run("norm/backward_gain", {
      bind: {
        x: k.rows(x, N, range),
        ...(mean && { meanIn: k.rows(mean, N, range) }),
        rstdIn: k.rows(rstd, N, range),
        dy: k.rows(dy, N, range),
        dgain,
      },
      params: { ...UNUSED, n: range.count, c: C, vectors, each: 1, hasGain: false, accumulate },
      grid,
      consts: { ...consts, CENTERED: Number(mean !== null) },
    });
  }
}

export const rmsNorm = defineOp({
  name: "rmsNorm",
  doc: "y = gain · x · rstd, rstd = 1 / sqrt(mean(x²) + eps) over the last axis; without a gain, 1 (methods.md, 1 and 2)",
  sig: "x[N..,C] gain?[C] -> y[N..,C] | rstd:f32[N..]",
  attrs: { eps: 1e-5 },
  ranges: { eps: NOT_NEGATIVE },
  reference({ x, gain, y, rstd }, { N, C }, { eps }) {
    for (let n = 0; n < N; n++) {
      let sumSq = 0;
      for (let c = 0; c < C; c++) sumSq += x[n * C + c] ** 2;
      const r = 1 / Math.sqrt(sumSq / C + eps);
      if (rstd) rstd[n] = r;
      for (let c = 0; c < C; c++) y[n * C + c] = x[n * C + c] * r * (gain ? gain[c] : 1);
    }
  },
  kernel: (k, io, dims, { eps }) => runNorm(k, io, null, dims, eps),
  draw: (pick) => ({
    dims: { ...drawRows(pick) },
    omit: pick.chance(0.3) ? ["gain"] : [],
    attrs: { eps: pick.oneOf([1e-5, 1e-6, 1e-2]) },
  }),
  close: CLOSE,
  flops: ({ N, C }) => 4 * N * C,
});

export const rmsNormBackwardX = defineOp({
  name: "rmsNormBackwardX",
  doc: "dx = rstd · (g - x · rstd² · mean(g · x)) with g = dy · gain",
  sig: "dy[N..,C] x[N..,C] rstd:f32[N..] gain?[C] -> dx[N..,C]",
  reference({ dy, x, rstd, gain, dx }, { N, C }) {
    for (let n = 0; n < N; n++) {
      const at = n * C;
      const r = rstd[n];
      let dot = 0;
      for (let c = 0; c < C; c++) dot += dy[at + c] * (gain ? gain[c] : 1) * x[at + c];
      for (let c = 0; c < C; c++) {
        dx[at + c] = r * (dy[at + c] * (gain ? gain[c] : 1) - (x[at + c] * r * r * dot) / C);
      }
    }
  },
  kernel: (k, io, dims) => runNormBackwardX(k, { ...io, mean: null }, dims),
  draw: (pick) => {
    const dims = { ...drawRows(pick) };
    return { dims, omit: pick.chance(0.3) ? ["gain"] : [] };
  },
  // g - x·(…) cancels; the difference is still small against the largest dx of the tensor.
  close: { rel: 256 * EPS, abs: 1e-6 },
  flops: ({ N, C }) => 8 * N * C,
});

export const rmsNormBackwardGain = defineOp({
  name: "rmsNormBackwardGain",
  doc: "dgain[c] = Σ_n dy · x · rstd",
  sig: "dy[N..,C] x[N..,C] rstd:f32[N..] -> dgain:f32[C]",
  reference({ dy, x, rstd, dgain }, { N, C }) {
    for (let c = 0; c < C; c++) {
      let sum = 0;
      for (let n = 0; n < N; n++) sum += dy[n * C + c] * x[n * C + c] * rstd[n];
      dgain[c] = sum;
    }
  },
  kernel: (k, io, dims) => runNormBackwardGain(k, { ...io, mean: null }, dims),
  draw: (pick) => ({ dims: { ...drawRows(pick, 1, 80) } }),
  // A sum of N terms of both signs: error eps·N of the largest term, against a result of about sqrt(N) of it.
  close: ({ N }) => ({ rel: (4 + 2 * Math.sqrt(N)) * EPS, abs: 1e-6 * N }),
  flops: ({ N, C }) => 3 * N * C,
});
