import { EPS } from "../dtype.ts";
import { defineOp, type OpRow } from "../op.ts";
import { runElementwise, unary } from "./elementwise-kernels.ts";
import { erf } from "./erf.ts";

// Every export of this file is a row of the op table.

// exp is the only inexact step: WGSL allows 3 + 2|x| ulp, and |x| stays below 88 before e^-|x| is 0.
// e^-|x| never overflows, so there are no infinities.
const sigmoidWgsl = (x: string): string =>
  `let e = exp(-abs(${x})); let s = select(e, vec4<f32>(1.0), ${x} >= vec4<f32>(0.0)) / (1.0 + e);`;
const sigmoidOf = (x: number): number => 1 / (1 + Math.exp(-x));

export const sigmoid = unary({
  name: "sigmoid",
  doc: "y = 1 / (1 + e^-x)",
  wgsl: `${sigmoidWgsl("x")} return s;`,
  f: sigmoidOf,
  flops: 4,
  rel: 16 * EPS,
});

export const silu = unary({
  name: "silu",
  doc: "y = x · sigmoid(x)",
  wgsl: `${sigmoidWgsl("x")} return x * s;`,
  f: (x) => x * sigmoidOf(x),
  flops: 5,
  rel: 16 * EPS,
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

export const geluBackward: OpRow<"dy[N..] x[N..] -> dx[N..]", { form: GeluForm }> = defineOp({
  name: "geluBackward",
  doc: "dx = dy · gelu'(x): Φ(x) + x φ(x), or the derivative of the tanh form",
  sig: "dy[N..] x[N..] -> dx[N..]",
  attrs: { form: "erf" as GeluForm },
  check: (_, attrs) => checkForm(attrs),
  reference({ dy, x, dx }, _, { form }) {
    for (let i = 0; i < x.length; i++) {
      if (form === "erf") {
        dx[i] = dy[i] * (cdfOf(x[i]) + (x[i] * Math.exp(-(x[i] ** 2) / 2)) / Math.sqrt(2 * Math.PI));
      } else {
        const t = Math.tanh(innerOf(x[i]));
        const slope = GELU_SCALE * (1 + 3 * GELU_CUBE * x[i] ** 2);
        dx[i] = dy[i] * (0.5 * (1 + t) + 0.5 * x[i] * (1 - t * t) * slope);
      }
    }
  },
  kernel: (k, { dy, x, dx }, _, { form }) =>
    runElementwise(k, "binary/main", { a: dy, b: x, y: dx }, { body: GELU_BACKWARD_WGSL[form] }),
  draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: { form: pick.oneOf(["erf", "tanh"] as const) } }),
  close: { rel: 32 * EPS, abs: 5e-7 }, // as gelu; 1 - t² loses a few ulp more
  flops: ({ N }) => 30 * N,
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
      const s = sigmoidOf(gate[i]);
      dgate[i] = dy[i] * up[i] * s * (1 + gate[i] * (1 - s));
      dup[i] = dy[i] * gate[i] * s;
    }
  },
  kernel: (k, { dy, gate, up, dgate, dup }) =>
    runElementwise(k, "silu-mul-backward/main", { dy, gate, up, dgate, dup }),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  // silu' is 0 near gate = -1.28, where 1 + g (1 - σ) cancels: an absolute error of a few eps of dy · up remains.
  close: { rel: 32 * EPS, abs: 8 * EPS },
  flops: ({ N }) => 10 * N,
});
