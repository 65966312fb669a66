import { EPS } from "../dtype.ts";
import { defineOp } from "../op.ts";
import type { Dims } from "../signature.ts";
import type { TestRandom } from "../test-random.ts";
import { runAccumulate, runElementwise } from "./elementwise-kernels.ts";

export const accumulate = defineOp({
  name: "accumulate",
  doc: "total = total + x, in place: gradients over micro-batches and over several uses of one value",
  sig: "total![N..] x[N..] ->",
  reference({ total, x }) {
    for (let i = 0; i < x.length; i++) total[i] += x[i];
  },
  kernel: (k, { total, x }) => runAccumulate(k, total, x),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: EPS },
  flops: ({ N }) => N,
});

/** Attributes of AdamW, for moments of either kind. */
export const ADAMW_ATTRS = { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weightDecay: 0, step: 1 };
type AdamWAttrs = typeof ADAMW_ATTRS;

export const ADAMW_RANGES = { step: { least: 1, whole: true } };

/** The fields that the `Params` of both AdamW kernels have in common. */
export const adamwParams = ({ lr, beta1, beta2, eps, weightDecay, step }: AdamWAttrs) => ({
  lr,
  beta1,
  oneMinusBeta1: 1 - beta1, // in double: 1 - 0.999 in float32 is off by 2e-5
  beta2,
  oneMinusBeta2: 1 - beta2,
  eps,
  decay: lr * weightDecay,
  correction1: 1 - beta1 ** step,
  correction2: 1 - beta2 ** step,
});

export const drawAdamW = (pick: TestRandom) => ({
  omit: pick.chance(0.5) ? ["gradScale"] : [],
  attrs: { lr: 10 ** -pick.int(1, 4), weightDecay: pick.oneOf([0, 0.01, 0.1]), step: pick.int(1, 1000) },
});

export const adamw = defineOp({
  name: "adamw",
  doc: "one AdamW step in place (methods.md, 6): m, v moments of g · gradScale; p ← p (1 - lr · weightDecay) - lr · m̂ / (√v̂ + eps)",
  sig: "p!:f32[N..] m!:f32[N..] v!:f32[N..] g[N..] gradScale?:f32[] ->",
  attrs: ADAMW_ATTRS,
  ranges: ADAMW_RANGES,
  reference({ p, m, v, g, gradScale }, _, { lr, beta1, beta2, eps, weightDecay, step }) {
    for (let i = 0; i < p.length; i++) {
      const gi = g[i] * (gradScale ? gradScale[0] : 1);
      m[i] = beta1 * m[i] + (1 - beta1) * gi;
      v[i] = beta2 * v[i] + (1 - beta2) * gi * gi;
      const mHat = m[i] / (1 - beta1 ** step);
      const vHat = v[i] / (1 - beta2 ** step);
      p[i] -= lr * weightDecay * p[i] + (lr * mHat) / (Math.sqrt(vHat) + eps);
    }
  },
  kernel: (k, { p, m, v, g, gradScale }, _, attrs) =>
    runElementwise(
      k,
      "adamw/main",
      { w: p, m, v, g },
      { params: { ...adamwParams(attrs), hasScale: gradScale !== null }, whole: { gradScale } },
    ),
  draw: (pick) => ({
    dims: { N: pick.shape(2000) },
    ...drawAdamW(pick),
    values: { v: (size) => Float64Array.from(pick.normals(size), (x) => x * x) },
  }),
  // p and the update may cancel: some ten roundings of EPS / 2 each, of numbers up to 3.
  close: { rel: 16 * EPS, abs: 16 * EPS },
  flops: ({ N }) => 14 * N,
});

/** Elements whose squares `sumSquares` adds to the same total before it goes on to the next. */
export const SQUARES_CHUNK = 1024; // CHUNK of sum-squares.wgsl

const refuseNoTotals = ({ S }: Dims): string | null => (S === 0 ? "there is no total to add to" : null);

export const sumSquares = defineOp({
  name: "sumSquares",
  doc:
    "adds the squares of x to the totals, in place: that of element i to total ⌊i / 1024⌋ mod S. Called for every gradient; the sum " +
    "of the totals is the square of the global norm",
  sig: "totals!:f32[S..] x[N..] ->",
  check: refuseNoTotals,
  reference({ totals, x }, { S }) {
    for (let i = 0; i < x.length; i++) totals[Math.floor(i / SQUARES_CHUNK) % S] += x[i] * x[i];
  },
  kernel(k, { totals, x }, { S, N }) {
    for (const range of k.split(N, [x])) {
      k.run("sum-squares/main", {
        bind: { x: k.rows(x, N, range), totals },
        params: { first: range.start, n: range.count, totals: S },
        grid: Math.min(S, Math.ceil((range.start + range.count) / SQUARES_CHUNK)),
      });
    }
  },
  draw: (pick) => ({
    dims: { S: pick.oneOf([[], [pick.int(1, 4)]]), N: pick.shape(5000) },
    values: { totals: (size) => pick.normals(size).map(Math.abs) },
  }),
  close: { rel: 64 * EPS }, // partial sums of one sign
  flops: ({ N }) => 2 * N,
});

export const clipFactor = defineOp({
  name: "clipFactor",
  doc: "factor = min(1, maxNorm / (norm + 1e-6)) and norm = √Σ sumSquares, as PyTorch's clip_grad_norm_",
  sig: "sumSquares:f32[S..] -> factor:f32[] norm:f32[]",
  attrs: { maxNorm: 1 },
  ranges: { maxNorm: { least: 0, most: Number.POSITIVE_INFINITY } },
  reference({ sumSquares, factor, norm }, _, { maxNorm }) {
    let sum = 0;
    for (let i = 0; i < sumSquares.length; i++) sum += sumSquares[i];
    norm[0] = Math.sqrt(sum);
    factor[0] = Math.min(1, maxNorm / (norm[0] + 1e-6));
  },
  kernel(k, { sumSquares, factor, norm }, { S }, { maxNorm }) {
    k.run("clip-factor/main", { bind: { sumSquares, factor, norm }, params: { maxNorm, n: S }, grid: 1 });
  },
  draw: (pick) => ({
    dims: { S: pick.shape(300) },
    attrs: { maxNorm: 10 ** pick.int(-2, 2) },
    values: { sumSquares: (size) => Float64Array.from({ length: size }, () => 10 ** (6 * pick.unit() - 3)) },
  }),
  close: { rel: 16 * EPS }, // partial sums of one sign, and the square root halves their error
  flops: ({ S }) => S + 4,
});
