import type { DType } from "../dtype.ts";
import { defineOp, type KernelContext, type OpRow } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** Vectors of four that one workgroup of the elementwise kernels covers: LANES · VECTORS in their files. */
const VECTORS_PER_GROUP = 64 * 4;

/** Dispatches an elementwise kernel over windows that fit a binding. `body` replaces its `apply`. */
function runElementwise(
  k: KernelContext,
  file: "unary" | "binary",
  bind: Record<string, Tensor>,
  scalar: number,
  body: string,
): void {
  const tensors = Object.values(bind);
  const size = tensors[0].size;
  for (const range of k.split(size, tensors)) {
    const windows = Object.fromEntries(
      Object.entries(bind).map(([name, t]) => [name, k.rows(t, size, range)]),
    );
    const vectors = Math.ceil(range.count / 4);
    k.run(`${file}/main`, {
      bind: windows,
      params: { vectors, scalar },
      grid: Math.ceil(vectors / VECTORS_PER_GROUP),
      bodies: { apply: body },
    });
  }
}

const EPS = 2 ** -23;

/** y = f(x), as a WGSL expression of `x: vec4<f32>` and the same formula in double. */
function unary<const Name extends string>(row: {
  name: Name;
  doc: string;
  wgsl: string;
  f: (x: number) => number;
  flops: number;
  rel: number;
}): OpRow<"x[N..] -> y[N..]", object> {
  return defineOp<"x[N..] -> y[N..]", object>({
    name: row.name,
    doc: row.doc,
    sig: "x[N..] -> y[N..]",
    reference({ x, y }) {
      for (let i = 0; i < x.length; i++) y[i] = row.f(x[i]);
    },
    kernel: (k, { x, y }) => runElementwise(k, "unary", { x, y }, 0, row.wgsl),
    draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
    close: { rel: row.rel },
    flops: ({ N }) => row.flops * N,
  });
}

/** y = f(a, b) over equal shapes. */
function binary<const Name extends string>(row: {
  name: Name;
  doc: string;
  wgsl: string;
  f: (a: number, b: number) => number;
}): OpRow<"a[N..] b[N..] -> y[N..]", object> {
  return defineOp<"a[N..] b[N..] -> y[N..]", object>({
    name: row.name,
    doc: row.doc,
    sig: "a[N..] b[N..] -> y[N..]",
    reference({ a, b, y }) {
      for (let i = 0; i < a.length; i++) y[i] = row.f(a[i], b[i]);
    },
    kernel: (k, { a, b, y }) => runElementwise(k, "binary", { a, b, y }, 0, row.wgsl),
    draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
    close: { rel: EPS }, // one rounding
    flops: ({ N }) => N,
  });
}

// exp is the only inexact step: WGSL allows 3 + 2|x| ulp, and |x| stays below 88 before e^-|x| is 0.
// e^-|x| never overflows, so no infinity is ever made.
const sigmoidWgsl = (x: string): string =>
  `let e = exp(-abs(${x})); let s = select(e, vec4<f32>(1.0), ${x} >= vec4<f32>(0.0)) / (1.0 + e);`;
const sigmoidOf = (x: number): number => 1 / (1 + Math.exp(-x));

export const add = binary({ name: "add", doc: "y = a + b", wgsl: "return a + b;", f: (a, b) => a + b });
export const mul = binary({ name: "mul", doc: "y = a · b", wgsl: "return a * b;", f: (a, b) => a * b });

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

export const scale = defineOp({
  name: "scale",
  doc: "y = factor · x, the factor a number of the host",
  sig: "x[N..] -> y[N..]",
  attrs: { factor: 1 },
  reference({ x, y }, _, { factor }) {
    for (let i = 0; i < x.length; i++) y[i] = factor * x[i];
  },
  kernel: (k, { x, y }, _, { factor }) =>
    runElementwise(k, "unary", { x, y }, factor, "return p.scalar * x;"),
  draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: { factor: pick.normal() } }),
  close: { rel: 2 * EPS }, // the factor and the product are rounded
  flops: ({ N }) => N,
});

export const scaleBy = defineOp({
  name: "scaleBy",
  doc: "y = s · x, the factor a scalar on the device",
  sig: "x[N..] s:f32[] -> y[N..]",
  reference({ x, s, y }) {
    for (let i = 0; i < x.length; i++) y[i] = s[0] * x[i];
  },
  kernel(k, { x, s, y }, { N }) {
    for (const range of k.split(N, [x, y])) {
      const vectors = Math.ceil(range.count / 4);
      k.run("scale-by/main", {
        bind: { x: k.rows(x, N, range), s, y: k.rows(y, N, range) },
        params: { vectors },
        grid: Math.ceil(vectors / VECTORS_PER_GROUP),
      });
    }
  },
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: EPS },
  flops: ({ N }) => N,
});

export const cast = defineOp({
  name: "cast",
  doc: "y = x in another float type, rounded to nearest even",
  sig: "x[N..] -> y[N..]",
  attrs: { to: "f32" as DType },
  infer: ([x], { to }) => ({ outputs: [{ shape: x.shape, dtype: to }] }),
  reference({ x, y }) {
    for (let i = 0; i < x.length; i++) y[i] = x[i];
  },
  kernel: (k, { x, y }) => runElementwise(k, "unary", { x, y }, 0, "return x;"),
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: 0 }, // f32 to f32; a narrower type adds its own rounding
  flops: () => 0,
});

export const fill = defineOp({
  name: "fill",
  doc: "x = value, in place",
  sig: "x![N..] ->",
  attrs: { value: 0 },
  reference({ x }, _, { value }) {
    x.fill(value);
  },
  kernel(k, { x }, { N }, { value }) {
    for (const range of k.split(N, [x])) {
      const vectors = Math.ceil(range.count / 4);
      k.run("fill/main", {
        bind: { x: k.rows(x, N, range) },
        params: { vectors, value },
        grid: Math.ceil(vectors / VECTORS_PER_GROUP),
      });
    }
  },
  draw: (pick) => ({ dims: { N: pick.shape(3000) }, attrs: { value: pick.normal() } }),
  close: { rel: EPS },
  flops: () => 0,
});

export const siluMul = defineOp({
  name: "siluMul",
  doc: "y = silu(gate) · up: the middle of a Llama feed-forward layer",
  sig: "gate[N..] up[N..] -> y[N..]",
  reference({ gate, up, y }) {
    for (let i = 0; i < gate.length; i++) y[i] = gate[i] * sigmoidOf(gate[i]) * up[i];
  },
  kernel: (k, { gate, up, y }) =>
    runElementwise(k, "binary", { a: gate, b: up, y }, 0, `${sigmoidWgsl("a")} return a * s * b;`),
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
  kernel(k, { dy, gate, up, dgate, dup }, { N }) {
    for (const range of k.split(N, [dy, gate, up, dgate, dup])) {
      const window = (tensor: Tensor) => k.rows(tensor, N, range);
      const vectors = Math.ceil(range.count / 4);
      k.run("silu-mul-backward/main", {
        bind: { dy: window(dy), gate: window(gate), up: window(up), dgate: window(dgate), dup: window(dup) },
        params: { vectors },
        grid: Math.ceil(vectors / VECTORS_PER_GROUP),
      });
    }
  },
  draw: (pick) => ({ dims: { N: pick.shape(3000) } }),
  close: { rel: 32 * EPS },
  flops: ({ N }) => 10 * N,
});
