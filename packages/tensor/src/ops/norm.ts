import { defineOp } from "../op.ts";
import { columnGroups, drawRows, rowGroups } from "./row-groups.ts";

const EPS = 2 ** -23;

// Error of a float32 sum of C squares by LANES partial sums: at most about (C / LANES + log2 LANES) roundings, and all
// terms have one sign, so nothing cancels. With C <= 16,384 and 8 lanes or more, 64 eps is ample.
const CLOSE = { rel: 64 * EPS, abs: 1e-7 };

/** The bindings and constant with which kernels/norm.wgsl computes rmsNorm. */
const RMS_PARAMS = { hasBias: false, accumulate: false };

export const rmsNorm = defineOp({
  name: "rmsNorm",
  doc: "y = gain · x · rstd, rstd = 1 / sqrt(mean(x²) + eps) over the last axis; without a gain, 1 (methods.md, 1 and 2)",
  sig: "x[N..,C] gain?[C] -> y[N..,C] | rstd:f32[N..]",
  attrs: { eps: 1e-5 },
  reference({ x, gain, y, rstd }, { N, C }, { eps }) {
    for (let n = 0; n < N; n++) {
      let sumSq = 0;
      for (let c = 0; c < C; c++) sumSq += x[n * C + c] ** 2;
      const r = 1 / Math.sqrt(sumSq / C + eps);
      if (rstd) rstd[n] = r;
      for (let c = 0; c < C; c++) y[n * C + c] = x[n * C + c] * r * (gain ? gain[c] : 1);
    }
  },
  kernel(k, { x, gain, y, rstd }, { N, C }, { eps }) {
    for (const range of k.split(N, [x, y, rstd])) {
      const bind = {
        x: k.rows(x, N, range),
        gain,
        y: k.rows(y, N, range),
        rstd: rstd ? k.rows(rstd, N, range) : k.temp([range.count]),
      };
      const { consts, vectors, each, grid } = rowGroups(k.profile, { rows: range.count, columns: C });
      const params = { n: range.count, c: C, vectors, each, eps, hasGain: gain !== null, ...RMS_PARAMS };
      k.run("norm/forward", { bind, params, grid, consts: { ...consts, CENTERED: 0 } });
    }
  },
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
  kernel(k, { dy, x, rstd, gain, dx }, { N, C }) {
    for (const range of k.split(N, [dy, x, rstd, dx])) {
      const bind = {
        x: k.rows(x, N, range),
        gain,
        y: k.rows(dx, N, range),
        rstdIn: k.rows(rstd, N, range),
        dy: k.rows(dy, N, range),
      };
      const { consts, vectors, each, grid } = rowGroups(k.profile, {
        rows: range.count,
        columns: C,
        operands: 2,
      });
      const params = { n: range.count, c: C, vectors, each, eps: 0, hasGain: gain !== null, ...RMS_PARAMS };
      k.run("norm/backward_x", { bind, params, grid, consts: { ...consts, CENTERED: 0 } });
    }
  },
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
  kernel(k, { dy, x, rstd, dgain }, { N, C }) {
    const parts = N === 0 ? [{ start: 0, count: 0 }] : k.split(N, [dy, x, rstd]); // the empty range still writes zeros
    for (const range of parts) {
      const { consts, vectors, grid } = columnGroups(k.profile, C);
      const params = { n: range.count, c: C, vectors, each: 1, eps: 0, hasGain: false, ...RMS_PARAMS };
      k.run("norm/backward_gain", {
        bind: { x: k.rows(x, N, range), rstdIn: k.rows(rstd, N, range), dy: k.rows(dy, N, range), dgain },
        params: { ...params, accumulate: range.start > 0 },
        grid,
        consts: { ...consts, CENTERED: 0 },
      });
    }
  },
  draw: (pick) => ({ dims: { ...drawRows(pick, 1, 80) } }),
  // A sum of N terms of both signs: error eps·N of the largest term, against a result of about sqrt(N) of it.
  close: ({ N }) => ({ rel: (4 + 2 * Math.sqrt(N)) * EPS, abs: 1e-6 * N }),
  flops: ({ N, C }) => 3 * N * C,
});
