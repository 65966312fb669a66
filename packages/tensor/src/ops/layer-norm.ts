import { EPS } from "../dtype.ts";
import { defineOp, NOT_NEGATIVE } from "../op.ts";
import { runNorm, runNormBackwardGain, runNormBackwardX } from "./norm.ts";
import { drawRows } from "./row-groups.ts";

export const layerNorm = defineOp({
  name: "layerNorm",
  doc: "y = (x - mean) · rstd · gain + bias over the last axis, rstd = 1 / sqrt(mean((x - mean)²) + eps); without a gain, 1",
  sig: "x[N..,C] gain?[C] bias?[C] -> y[N..,C] | mean:f32[N..] rstd:f32[N..]",
  attrs: { eps: 1e-5 },
  ranges: { eps: NOT_NEGATIVE },
  reference({ x, gain, bias, y, mean, rstd }, { N, C }, { eps }) {
    for (let n = 0; n < N; n++) {
      const at = n * C;
      let sum = 0;
      for (let c = 0; c < C; c++) sum += x[at + c];
      const center = sum / C;
      let squares = 0;
      for (let c = 0; c < C; c++) squares += (x[at + c] - center) ** 2;
      const r = 1 / Math.sqrt(squares / C + eps);
      if (mean) mean[n] = center;
      if (rstd) rstd[n] = r;
      for (let c = 0; c < C; c++) {
        y[at + c] = (x[at + c] - center) * r * (gain ? gain[c] : 1) + (bias ? bias[c] : 0);
      }
    }
  },
  kernel: (k, { bias, mean, ...io }, dims, { eps }) => runNorm(k, io, { bias, mean }, dims, eps),
  draw: (pick) => ({
    dims: { ...drawRows(pick, 2) },
    omit: pick.oneOf([[], ["gain"], ["bias"], ["gain", "bias"]]),
    attrs: { eps: pick.oneOf([1e-5, 1e-6, 1e-2]) },
  }),
  // As rmsNorm. Nearly equal values in a short row make rstd large, which amplifies the rounding of x - mean.
  close: ({ C }) => ({ rel: (64 + 4096 / C) * EPS, abs: 1e-6 }),
  flops: ({ N, C }) => 7 * N * C,
});

export const layerNormBackwardX = defineOp({
  name: "layerNormBackwardX",
  doc: "dx = rstd · (g - mean(g) - x̂ · mean(g · x̂)) with g = dy · gain, x̂ = (x - mean) · rstd",
  sig: "dy[N..,C] x[N..,C] mean:f32[N..] rstd:f32[N..] gain?[C] -> dx[N..,C]",
  reference({ dy, x, mean, rstd, gain, dx }, { N, C }) {
    for (let n = 0; n < N; n++) {
      const at = n * C;
      let sum = 0;
      let dot = 0;
      for (let c = 0; c < C; c++) {
        const g = dy[at + c] * (gain ? gain[c] : 1);
        sum += g;
        dot += g * (x[at + c] - mean[n]) * rstd[n];
      }
      for (let c = 0; c < C; c++) {
        const g = dy[at + c] * (gain ? gain[c] : 1);
        dx[at + c] = rstd[n] * (g - sum / C - ((x[at + c] - mean[n]) * rstd[n] * dot) / C);
      }
    }
  },
  kernel: runNormBackwardX,
  draw: (pick) => ({
    dims: { ...drawRows(pick) },
    omit: pick.chance(0.3) ? ["gain"] : [],
  }),
  close: { rel: 256 * EPS, abs: 1e-6 }, // g - mean - x̂ · (…) cancels, as in rmsNormBackwardX
  flops: ({ N, C }) => 11 * N * C,
});

export const layerNormBackwardGain = defineOp({
  name: "layerNormBackwardGain",
  doc: "dgain[c] = Σ_n dy · (x - mean) · rstd",
  sig: "dy[N..,C] x[N..,C] mean:f32[N..] rstd:f32[N..] -> dgain:f32[C]",
  reference({ dy, x, mean, rstd, dgain }, { N, C }) {
    for (let c = 0; c < C; c++) {
      let sum = 0;
      for (let n = 0; n < N; n++) sum += dy[n * C + c] * (x[n * C + c] - mean[n]) * rstd[n];
      dgain[c] = sum;
    }
  },
  kernel: runNormBackwardGain,
  draw: (pick) => ({ dims: { ...drawRows(pick, 1, 80) } }),
  close: ({ N }) => ({ rel: (4 + 2 * Math.sqrt(N)) * EPS, abs: 1e-6 * N }), // as rmsNormBackwardGain
  flops: ({ N, C }) => 4 * N * C,
});
