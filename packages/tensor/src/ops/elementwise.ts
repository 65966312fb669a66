import { broadcastShape, broadcastSource } from "../broadcasting.ts";
import { type DType, EPS, LARGEST_F16, LARGEST_F32 } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, UNBOUNDED } from "../op.ts";
import { sameShape } from "../shape.ts";
import {
  binary,
  comparison,
  drawAwayFromBounds,
  drawBroadcast,
  runConvert,
  runElementwise,
  runFill,
  runSpread,
  runToF16,
  unary,
} from "./elementwise-kernels.ts";

// Every export of this file is a row of the op table: adding one is all that the table needs (docs/adding-an-op.md).

export const add = binary({ name: "add", doc: "y = a + b", wgsl: "return a + b;", f: (a, b) => a + b });
export const sub = binary({ name: "sub", doc: "y = a - b", wgsl: "return a - b;", f: (a, b) => a - b });
export const mul = binary({ name: "mul", doc: "y = a · b", wgsl: "return a * b;", f: (a, b) => a * b });

export const div = binary({
  name: "div",
  doc: "y = a / b; the caller has to avoid a divisor of 0",
  wgsl: "return a / b;",
  f: (a, b) => a / b,
  rel: 4 * EPS, // WGSL allows 2.5 units in the last place
  values: (pick) => ({ b: (size) => pick.awayFromZero(size, 0.5) }),
});

export const minimum = binary({
  name: "minimum",
  doc: "y = the smaller of a and b",
  wgsl: "return min(a, b);",
  f: (a, b) => Math.min(a, b),
  rel: 0,
});

export const maximum = binary({
  name: "maximum",
  doc: "y = the larger of a and b",
  wgsl: "return max(a, b);",
  f: (a, b) => Math.max(a, b),
  rel: 0,
});

export const equal = comparison({
  name: "equal",
  doc: "m = 1 where a = b, else 0",
  wgsl: "return a == b;",
  f: (a, b) => a === b,
});

export const less = comparison({
  name: "less",
  doc: "m = 1 where a < b, else 0; greater is less with its operands exchanged",
  wgsl: "return a < b;",
  f: (a, b) => a < b,
});

export const lessEqual = comparison({
  name: "lessEqual",
  doc: "m = 1 where a ≤ b, else 0",
  wgsl: "return a <= b;",
  f: (a, b) => a <= b,
});

export const where = defineOp({
  name: "where",
  doc: "y = a where mask is not 0, else b; an absent operand counts as 0",
  sig: "mask:u8[M..] a?[A..] b?[B..] -> y[Y..]",
  infer: ([mask, a, b]) => {
    const present = [mask, a, b].filter((operand) => operand !== null);
    if (present.length < 2) throw new SidenetError("T-SHAPE", "where: one of a and b is wanted.");
    const shape = broadcastShape(
      "where",
      present.map((operand) => operand.shape),
    );
    return { outputs: [{ shape, dtype: present[1].dtype }] };
  },
  reference({ mask, a, b, y }, _dims, _attrs, shapes) {
    for (let i = 0; i < y.length; i++) {
      const chosen = mask[broadcastSource(i, shapes.y, shapes.mask)] !== 0 ? a : b;
      const own = (chosen === a ? shapes.a : shapes.b) ?? [];
      y[i] = chosen === null ? 0 : chosen[broadcastSource(i, shapes.y, own)];
    }
  },
  kernel(k, { mask, a, b, y }) {
    const equal = [mask, a, b].every((operand) => operand === null || sameShape(operand.shape, y.shape));
    const params = { hasA: a !== null, hasB: b !== null };
    if (equal) runElementwise(k, "where/main", { mask, a, b, y }, { params });
    else runSpread(k, "where", "choose", { a, b, mask }, { y }, {});
  },
  draw: (pick) => {
    const { A, B } = drawBroadcast(pick);
    return {
      dims: { A, B, M: pick.oneOf([A, B, broadcastShape("where", [A, B])]) },
      omit: pick.oneOf([[], [], ["a"], ["b"]]),
    };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

export const neg = unary({ name: "neg", doc: "y = -x", wgsl: "return -x;", f: (x) => -x, flops: 1, rel: 0 });

export const abs = unary({
  name: "abs",
  doc: "y = |x|",
  wgsl: "return abs(x);",
  f: Math.abs,
  flops: 1,
  rel: 0,
  values: (pick, size) => pick.awayFromZero(size, 0.01),
});

export const sign = unary({
  name: "sign",
  doc: "y = 1, -1 or 0 as x is above, below or equal to 0",
  wgsl: "return sign(x);",
  f: (x) => (x > 0 ? 1 : x < 0 ? -1 : 0),
  flops: 1,
  rel: 0,
  values: (pick, size) => pick.awayFromZero(size, 0.01),
});

export const exp = unary({
  name: "exp",
  doc: "y = e^x; an x above 88 counts as 88, since e^89 has no float32",
  wgsl: "return exp(min(x, vec4<f32>(88.0)));",
  f: (x) => Math.exp(Math.min(x, 88)),
  flops: 1,
  rel: 16 * EPS, // WGSL allows 3 + 2|x| units in the last place; the largest of a case is e^4 or so
});

/** The smallest normal float32: devices may flush smaller values to 0. */
const TINY = 2 ** -126;

export const log = unary({
  name: "log",
  doc: "y = log x; an x below the smallest normal float32, 2^-126, counts as that, so log 0 is finite",
  wgsl: "return log(max(x, vec4<f32>(0x1p-126)));",
  f: (x) => Math.log(Math.max(x, TINY)),
  flops: 1,
  rel: 8 * EPS,
  abs: 2 ** -21, // WGSL: 3 units in the last place, but near 1, where log x is small, 2^-21
  values: (pick, size) => Float64Array.from({ length: size }, () => 10 ** (3 * pick.unit() - 1)),
});

export const sqrt = unary({
  name: "sqrt",
  doc: "y = √x; an x below 0 counts as 0",
  wgsl: "return sqrt(max(x, vec4<f32>(0.0)));",
  f: (x) => Math.sqrt(Math.max(x, 0)),
  flops: 1,
  rel: 4 * EPS, // computed by an inverse square root that is 2 ulp off
  values: (pick, size) => Float64Array.from({ length: size }, () => 0.1 + 3 * pick.unit()),
});

export const pow = unary({
  name: "pow",
  doc: "y = x^exponent, the exponent a host number; if it is not an integer, an x below 0 counts as 0",
  attrs: { exponent: 2 },
  // An integer exponent by squaring: exact signs, one rounding per product. Otherwise log2 has 2^-21 absolute error near 1.
  wgsl: ({ exponent }) =>
    Number.isInteger(exponent)
      ? "var y = vec4<f32>(1.0); var b = x; for (var n = u32(abs(p.scalar)); n > 0u; n >>= 1u) { " +
        "if ((n & 1u) == 1u) { y *= b; } if (n > 1u) { b *= b; } } " +
        "if (p.scalar < 0.0) { y = 1.0 / y; } return y;"
      : "return select(vec4<f32>(0.0), exp2(p.scalar * log2(max(x, vec4<f32>(0x1p-126)))), x > vec4<f32>(0.0));",
  scalars: ({ exponent }) => [exponent],
  f: (x, { exponent }) => (Number.isInteger(exponent) || x > 0 ? x ** exponent : 0),
  flops: 4,
  rel: 64 * EPS,
  draw: (pick) => ({ exponent: pick.oneOf([2, 3, 5, -1, -2, 0.5, 1.7, -0.3]) }),
  values: (pick, size) => Float64Array.from({ length: size }, () => 0.4 + 2 * pick.unit()),
});

export const clamp = unary({
  name: "clamp",
  doc: "y = x clamped to min .. max; null means no bound",
  attrs: { min: null as number | null, max: null as number | null },
  ranges: { min: UNBOUNDED, max: UNBOUNDED },
  wgsl: "return clamp(x, vec4<f32>(p.scalar), vec4<f32>(p.other));",
  scalars: ({ min, max }) => [min ?? -LARGEST_F32, max ?? LARGEST_F32],
  f: (x, { min, max }) => Math.min(Math.max(x, min ?? -LARGEST_F32), max ?? LARGEST_F32),
  flops: 2,
  rel: EPS, // a bound is rounded to float32
  draw: (pick) => ({ min: pick.oneOf([null, -0.5, 0]), max: pick.oneOf([null, 0.5, 1]) }),
  values: drawAwayFromBounds,
});

export const scale = unary({
  name: "scale",
  doc: "y = factor · x, the factor a host number",
  attrs: { factor: 1 },
  wgsl: "return p.scalar * x;",
  scalars: ({ factor }) => [factor],
  f: (x, { factor }) => factor * x,
  flops: 1,
  rel: 2 * EPS, // the factor and the product are rounded
  draw: (pick) => ({ factor: pick.normal() }),
});

export const scaleBy = defineOp({
  name: "scaleBy",
  doc: "y = s · x, the factor a scalar on the device",
  sig: "x[N..] s:f32[] -> y[N..]",
  reference({ x, s, y }) {
    for (let i = 0; i < x.length; i++) y[i] = s[0] * x[i];
  },
  kernel: (k, { x, s, y }) =>
    runElementwise(k, "unary/main", { x, y }, { body: "return s[0] * x;", whole: { s } }),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: EPS },
  flops: ({ N }) => N,
});

export const cast = defineOp({
  name: "cast",
  doc: "y = x in another float type, rounded to nearest even; beyond the range of f16 its largest number, never infinity",
  sig: "x[N..] -> y[N..]",
  attrs: { to: "f32" as DType },
  infer: ([x], { to }) => {
    if (to !== "f32" && to !== "f16") {
      throw new SidenetError(
        "T-DTYPE",
        `cast: to is ${to}, wanted f32 or f16. Compute integers on the host.`,
      );
    }
    return { outputs: [{ shape: x.shape, dtype: to }] };
  },
  reference({ x, y }, _, { to }) {
    const max = to === "f16" ? LARGEST_F16 : Number.POSITIVE_INFINITY;
    for (let i = 0; i < x.length; i++) y[i] = Math.max(-max, Math.min(max, x[i]));
  },
  kernel: (k, { x, y }, _, { to }) => (to === "f16" ? runToF16(k, x, y) : runConvert(k, x, y)),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: 0 }, // f32 to f32; a narrower type adds its own rounding
  flops: () => 0,
});

export const fill = defineOp({
  name: "fill",
  doc: "x = value, in place",
  sig: "x![N..] ->",
  attrs: { value: 0 },
  ranges: { value: { ...UNBOUNDED, nan: true } },
  reference({ x }, _, { value }) {
    x.fill(value);
  },
  kernel(k, { x }, _, { value }) {
    runFill(k, x, value);
  },
  draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: { value: pick.normal() } }),
  close: { rel: EPS },
  flops: () => 0,
});
