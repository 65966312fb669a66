/** SGD and AdamW with 8-bit state; optimizer.ts has AdamW with f32 state. */
import { EPS, type HostArray } from "../dtype.ts";
import { defineOp } from "../op.ts";
import { dynamicMap } from "../quant-maps.ts";
import { sizeOf } from "../shape.ts";
import { part, windows } from "./block-windows.ts";
import { runElementwise } from "./elementwise-kernels.ts";
import { ADAMW_ATTRS, ADAMW_RANGES, adamwParams, drawAdamW } from "./optimizer.ts";

const { fround } = Math;

export const sgd = defineOp({
  name: "sgd",
  doc: "one step of SGD with momentum in place: d = g · gradScale + weightDecay · p; m ← momentum · m + d; p ← p - lr · m, or with nesterov lr · (d + momentum · m)",
  sig: "p!:f32[N..] m!:f32[N..] g[N..] gradScale?:f32[] ->",
  attrs: { lr: 1e-2, momentum: 0.9, weightDecay: 0, nesterov: false },
  reference({ p, m, g, gradScale }, _, { lr, momentum, weightDecay, nesterov }) {
    for (let i = 0; i < p.length; i++) {
      const d = g[i] * (gradScale ? gradScale[0] : 1) + weightDecay * p[i];
      m[i] = momentum * m[i] + d;
      p[i] -= lr * (nesterov ? d + momentum * m[i] : m[i]);
    }
  },
  kernel: (k, { p, m, g, gradScale }, _, attrs) =>
    runElementwise(
      k,
      "sgd/main",
      { w: p, m, g },
      { params: { ...attrs, hasScale: gradScale !== null }, whole: { gradScale } },
    ),
  draw: (pick) => ({
    dims: { N: pick.shape(2000) },
    omit: pick.chance(0.5) ? ["gradScale"] : [],
    attrs: {
      lr: 10 ** -pick.int(0, 3),
      momentum: pick.oneOf([0, 0.9, 0.99]),
      weightDecay: pick.oneOf([0, 0.1]),
      nesterov: pick.chance(0.5),
    },
  }),
  // Sums of up to three terms, of p and lr · m too, that may cancel: six roundings of half an EPS, of numbers up to 5 in size.
  close: { rel: 16 * EPS, abs: 16 * EPS },
  flops: ({ N }) => 8 * N,
});

/** Elements that share one scale of 8-bit state. */
export const STATE_BLOCK = 256;

/** The two maps of 8-bit state, f32[512]: signed for m, then unsigned for v. */
export const stateMaps = (): Float32Array => Float32Array.of(...dynamicMap(true), ...dynamicMap(false));

/** Encodes a block of moments: its scale, and per value the nearest entry of the map, ties to the lower. */
function encode(
  values: readonly number[],
  codes: HostArray,
  maxima: HostArray,
  block: number,
  map: HostArray,
  smallest = 0,
): void {
  const largest = values.reduce((a, b) => Math.max(a, Math.abs(b)), 0);
  maxima[block] = largest;
  for (const [j, value] of values.entries()) {
    const scaled = largest > 0 ? fround(value / Math.max(largest, 1e-37)) : 0;
    let code = 0;
    while (code < 255 && scaled > fround(map[code] + map[code + 1]) / 2) code++;
    codes[block * STATE_BLOCK + j] = value > 0 ? Math.max(code, smallest) : code;
  }
}

export const adamw8 = defineOp({
  name: "adamw8",
  doc: "adamw with 8-bit moments in blocks of 256: m = maps[mCode] · mMax, v = maps[256 + vCode] · vMax, in the dynamic maps of bitsandbytes",
  sig: "p!:f32[N..] mCodes!:u8[N..] vCodes!:u8[N..] mMax!:f32[B] vMax!:f32[B] maps:f32[L] g[N..] gradScale?:f32[] ->",
  attrs: ADAMW_ATTRS,
  ranges: ADAMW_RANGES,
  check: ({ N, B, L }) => {
    if (L !== 512) return `maps has ${L} entries, two maps have 512`;
    return B === Math.ceil(N / STATE_BLOCK)
      ? null
      : `${N} elements have ${Math.ceil(N / STATE_BLOCK)} blocks of 256, not ${B}`;
  },
  // Rounds every step to f32 like the kernel: codes have to agree to the bit.
  reference({ p, mCodes, vCodes, mMax, vMax, maps, g, gradScale }, { N, B }, attrs) {
    const { lr, beta1, beta2, eps, weightDecay, step } = attrs;
    const [b1, c1, b2, c2] = [beta1, 1 - beta1, beta2, 1 - beta2].map(fround);
    for (let block = 0; block < B; block++) {
      const [ms, vs]: [number[], number[]] = [[], []];
      for (let i = block * STATE_BLOCK; i < Math.min(N, (block + 1) * STATE_BLOCK); i++) {
        const grad = fround(g[i] * (gradScale ? gradScale[0] : 1));
        const m0 = fround(maps[mCodes[i]] * mMax[block]);
        const v0 = fround(maps[256 + vCodes[i]] * vMax[block]);
        const m = fround(fround(b1 * m0) + fround(c1 * grad));
        const v = fround(fround(b2 * v0) + fround(c2 * fround(grad * grad)));
        const mHat = m / (1 - beta1 ** step);
        const vHat = v / (1 - beta2 ** step);
        p[i] -= lr * weightDecay * p[i] + (lr * mHat) / (Math.sqrt(vHat) + eps);
        ms.push(m);
        vs.push(v);
      }
      encode(ms, mCodes, mMax, block, maps.subarray(0, 256));
      encode(vs, vCodes, vMax, block, maps.subarray(256), 1); // minimum code 1: a positive v stays positive, or m / eps would be a huge step
    }
  },
  kernel(k, { p, mCodes, vCodes, mMax, vMax, maps, g, gradScale }, { N }, attrs) {
    // Multiples of 64 blocks, whose scales start at an aligned offset.
    for (const range of windows(k, N, 4, 64 * STATE_BLOCK)) {
      k.run("adamw-8bit/main", {
        bind: {
          w: part(k, p, range, 1),
          mCodes: part(k, mCodes, range, 1),
          vCodes: part(k, vCodes, range, 1),
          mMax: part(k, mMax, range, STATE_BLOCK),
          vMax: part(k, vMax, range, STATE_BLOCK),
          maps,
          g: part(k, g, range, 1),
          gradScale,
        },
        params: { n: range.count, ...adamwParams(attrs), hasScale: gradScale !== null, zero: 0 },
        grid: Math.ceil(range.count / STATE_BLOCK),
      });
    }
  },
  draw: (pick) => {
    const N = pick.shape(2000);
    return {
      dims: { N, B: Math.ceil(sizeOf(N) / STATE_BLOCK), L: 512 },
      ...drawAdamW(pick),
      values: {
        mCodes: (n) => pick.ints(n, 0, 255),
        vCodes: (n) => pick.ints(n, 0, 255),
        mMax: (n) => Float64Array.from(pick.normals(n), Math.abs),
        vMax: (n) => Float64Array.from(pick.normals(n), Math.abs),
        maps: stateMaps,
      },
    };
  },
  close: { rel: 16 * EPS, abs: 16 * EPS }, // as adamw's p; far below 1, so codes agree exactly
  flops: ({ N }) => 20 * N,
});
