import { EPS } from "../dtype.ts";
import { type Closeness, defineOp, type OpRow } from "../op.ts";
import { bodyOf, commonOf, type ElementwiseRow, runElementwise, unary } from "./elementwise-kernels.ts";
import { erf } from "./erf.ts";

// Every export of this file is a row of the op table.

// exp is the only inexact step: WGSL allows 3 + 2|x| ulp, and |x| stays below 88 before e^-|x| is 0.
// e^-|x| never overflows, so there are no infinities.
const sigmoidWgsl = (x: string): string =>
  `let e = exp(-abs(${x})); let s = select(e, vec4<f32>(1.0), ${x} >= vec4<f32>(0.0)) / (1.0 + e);`;
const sigmoidOf = (x: number): number => 1 / (1 + Math.exp(-x));

/** Its WGSL is the body of `apply(a: vec4<f32>, b: vec4<f32>) -> vec4<f32>`, with a = dy and b = x. */
interface SlopeRow<A extends object> extends ElementwiseRow<A> {
  /** f'(x) in double. */
  readonly slope: (x: number, attrs: A) => number;
  readonly flops: number;
  readonly close: Closeness;
}

type SlopeSig = "dy[N..] x[N..] -> dx[N..]";

/** The row of the gradient of an elementwise op, dx = dy · f'(x). */
// biome-ignore lint/complexity/noBannedTypes: a row without attributes
function slope<A extends object = {}>(row: SlopeRow<A>): OpRow<SlopeSig, A> {
  return defineOp<SlopeSig, A>({
    ...commonOf(row),
    sig: "dy[N..] x[N..] -> dx[N..]",
    reference({ dy, x, dx }, _, attrs) {
      for (let i = 0; i < x.length; i++) dx[i] = dy[i] * row.slope(x[i], attrs);
    },
    kernel: (k, { dy, x, dx }, _, attrs) =>
      runElementwise(k, "binary/main", { a: dy, b: x, y: dx }, bodyOf(row, attrs)),
    draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: row.draw?.(pick) ?? {} }),
    close: row.close,
    flops: ({ N }) => row.flops * N,
  });
}

export const sigmoid = unary({
  name: "sigmoid",
  doc: "y = 1 / (1 + e^-x)",
  wgsl: `${sigmoidWgsl("x")} return s;`,
  f: sigmoidOf,
  flops: 4,
  rel: 16 * EPS,
});

/** σ'(x) = e / (1 + e)² with e = e^-|x|, which is not 0 where σ(x) rounds to 1; `rate` · x in place of x. */
const sigmoidSlopeOf = (x: number, rate = 1): number => {
  const e = Math.exp(-rate * Math.abs(x));
  return e / (1 + e) ** 2;
};

export const sigmoidBackward = slope({
  name: "sigmoidBackward",
  doc: "dx = dy · σ(x) σ(-x)",
  wgsl: "let e = exp(-abs(b)); let q = 1.0 / (1.0 + e); return a * (e * q * q);",
  slope: (x) => sigmoidSlopeOf(x),
  flops: 6,
  close: { rel: 16 * EPS },
});

export const silu = unary({
  name: "silu",
  doc: "y = x · sigmoid(x)",
  wgsl: `${sigmoidWgsl("x")} return x * s;`,
  f: (x) => x * sigmoidOf(x),
  flops: 5,
  rel: 16 * EPS,
});

const siluSlopeOf = (x: number): number => {
  const s = sigmoidOf(x);
  return s * (1 + x * (1 - s));
};

// silu' is 0 near x = -1.28, where 1 + x (1 - σ) cancels: an absolute error of a few eps of dy remains.
const SILU_SLOPE_CLOSE = { rel: 32 * EPS, abs: 8 * EPS };

export const siluBackward = slope({
  name: "siluBackward",
  doc: "dx = dy · silu'(x), silu'(x) = σ(x) (1 + x (1 - σ(x)))",
  wgsl: `${sigmoidWgsl("b")} return a * s * (1.0 + b * (1.0 - s));`,
  slope: siluSlopeOf,
  flops: 8,
  close: SILU_SLOPE_CLOSE,
});

export const relu = unary({
  name: "relu",
  doc: "y = max(x, 0)",
  wgsl: "return max(x, vec4<f32>(0.0));",
  f: (x) => Math.max(x, 0),
  flops: 1,
  rel: 0,
  values: (pick, size) => pick.awayFromZero(size, 0.01),
});

// Computed from e^-2|x|, which neither overflows nor cancels, and by a series near 0, where 1 - e^-2|x| would cancel. WGSL's own tanh
// may be off by 1e-5.
const tanhWgsl = (x: string): string =>
  `let h = clamp(${x}, vec4<f32>(-20.0), vec4<f32>(20.0)); let q = exp(-2.0 * abs(h)); let w = h * h; ` +
  "let near = h * (1.0 - w * (0.33333333 - w * (0.13333333 - w * (0.053968254 - w * 0.021869488)))); " +
  "let t = select(sign(h) * (1.0 - q) / (1.0 + q), near, abs(h) < vec4<f32>(0.25));";

export const tanh = unary({
  name: "tanh",
  doc: "y = tanh x",
  wgsl: `${tanhWgsl("x")} return t;`,
  f: Math.tanh,
  flops: 12,
  rel: 8 * EPS, // e^-2|x| is at most 1; where it matters, its 3 + 2|x| units in the last place are small beside 1
});

export const tanhBackward = slope({
  name: "tanhBackward",
  doc: "dx = dy · (1 - tanh² x), computed as 4 σ(2x) σ(-2x)",
  wgsl: "let e = exp(-2.0 * abs(b)); let q = 1.0 / (1.0 + e); return a * (4.0 * e * q * q);",
  slope: (x) => 4 * sigmoidSlopeOf(x, 2),
  flops: 8,
  close: { rel: 16 * EPS },
});

/** Which of the two functions called GELU: x Φ(x), or its approximation by a tanh. */
export type GeluForm = "erf" | "tanh";

const GELU_SCALE = Math.sqrt(2 / Math.PI);
const GELU_CUBE = 0.044715;

// Arguments are clamped to ±13, where Φ is 0 or 1 and φ is 0 in f32, so no power of a large x is computed.
// erf by Abramowitz and Stegun 7.1.26: 1.5e-7 absolute error, with e^-z² as the only inexact step.
const erfWgsl = (x: string): string =>
  `let z = min(abs(${x}) * 0.70710678, vec4<f32>(9.0)); let u = 1.0 / (1.0 + 0.3275911 * z); ` +
  "let poly = u * (0.254829592 + u * (-0.284496736 + u * (1.421413741 + u * (-1.453152027 + u * 1.061405429)))); " +
  `let tail = poly * exp(-z * z) * 0.5; let cdf = select(1.0 - tail, tail, ${x} < vec4<f32>(0.0));`;
const innerWgsl = (x: string): string =>
  `let v = min(abs(${x}), vec4<f32>(20.0)) * sign(${x}); let inner = 0.7978845608 * (v + 0.044715 * v * v * v); `;

const GELU_WGSL: Readonly<Record<GeluForm, string>> = {
  erf: `${erfWgsl("x")} return max(x, vec4<f32>(-13.0)) * cdf;`,
  tanh: `${innerWgsl("x")} ${tanhWgsl("inner")} return 0.5 * x * (1.0 + t);`,
};

const GELU_BACKWARD_WGSL: Readonly<Record<GeluForm, string>> = {
  erf: `${erfWgsl("b")} return a * (cdf + clamp(b, vec4<f32>(-13.0), vec4<f32>(13.0)) * 0.39894228 * exp(-z * z));`,
  tanh:
    `${innerWgsl("b")} ${tanhWgsl("inner")} ` +
    "return a * (0.5 * (1.0 + t) + 0.5 * v * (1.0 - t * t) * 0.7978845608 * (1.0 + 0.134145 * v * v));",
};

const cdfOf = (x: number): number => 0.5 * (1 + erf(x / Math.SQRT2));
const innerOf = (x: number): number => GELU_SCALE * (x + GELU_CUBE * x ** 3);

const checkForm = ({ form }: { form: GeluForm }): string | null =>
  Object.hasOwn(GELU_WGSL, form) ? null : `form ${JSON.stringify(form)} is neither "erf" nor "tanh"`;

export const gelu = unary({
  name: "gelu",
  doc: 'y = x Φ(x), Φ the normal distribution; form "tanh": x/2 (1 + tanh(√(2/π) (x + 0.044715 x³)))',
  attrs: { form: "erf" as GeluForm },
  check: checkForm,
  wgsl: ({ form }) => GELU_WGSL[form],
  f: (x, { form }) => (form === "erf" ? x * cdfOf(x) : 0.5 * x * (1 + Math.tanh(innerOf(x)))),
  flops: 20,
  rel: 8 * EPS,
  abs: 5e-7, // Φ is off by 7.5e-8, times x; the result is small only for negative x, of which those down to about -4 matter
  draw: (pick) => ({ form: pick.oneOf(["erf", "tanh"]) }),
});

export const geluBackward = slope({
  name: "geluBackward",
  doc: "dx = dy · gelu'(x): Φ(x) + x φ(x), or the derivative of the tanh form",
  attrs: { form: "erf" as GeluForm },
  check: checkForm,
  wgsl: ({ form }) => GELU_BACKWARD_WGSL[form],
  slope(x, { form }) {
    if (form === "erf") return cdfOf(x) + (x * Math.exp(-(x ** 2) / 2)) / Math.sqrt(2 * Math.PI);
    const t = Math.tanh(innerOf(x));
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * GELU_SCALE * (1 + 3 * GELU_CUBE * x ** 2);
  },
  flops: 30,
  close: { rel: 32 * EPS, abs: 5e-7 }, // as gelu; 1 - t² loses a few ulp more
  draw: (pick) => ({ form: pick.oneOf(["erf", "tanh"]) }),
});

export const siluMul = defineOp({
  name: "siluMul",
  doc: "y = silu(gate) · up: the middle of a Llama feed-forward layer",
  sig: "gate[N..] up[N..] -> y[N..]",
  reference({ gate, up, y }) {
    for (let i = 0; i < gate.length; i++) y[i] = gate[i] * sigmoidOf(gate[i]) * up[i];
  },
  kernel: (k, { gate, up, y }) =>
    runElementwise(
      k,
      "binary/main",
      { a: gate, b: up, y },
      { body: `${sigmoidWgsl("a")} return a * s * b;` },
    ),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: 16 * EPS },
  flops: ({ N }) => 6 * N,
});

export const siluMulBackward = defineOp({
  name: "siluMulBackward",
  doc: "dgate = dy · up · silu'(gate), dup = dy · silu(gate), with silu'(g) = σ(g) (1 + g (1 - σ(g)))",
  sig: "dy[N..] gate[N..] up[N..] -> dgate[N..] dup[N..]",
  reference({ dy, gate, up, dgate, dup }) {
    for (let i = 0; i < gate.length; i++) {
      dgate[i] = dy[i] * up[i] * siluSlopeOf(gate[i]);
      dup[i] = dy[i] * gate[i] * sigmoidOf(gate[i]);
    }
  },
  kernel: (k, { dy, gate, up, dgate, dup }) =>
    runElementwise(k, "silu-mul-backward/main", { dy, gate, up, dgate, dup }),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: SILU_SLOPE_CLOSE,
  flops: ({ N }) => 10 * N,
});
