import { EPS, type HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type Inferred, type KernelContext, NO_ROWS } from "../op.ts";
import { formatShape, sameShape } from "../shape.ts";
import type { Dims, TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { aroundAxis, drawAxis, withoutAxis } from "./axis.ts";
import { runConvert } from "./elementwise-kernels.ts";

/** Inner extent from which one thread per output reads contiguous memory together with its neighbours. */
const WIDE = 32;

interface SumWindow {
  readonly outer: number;
  readonly length: number;
  readonly inner: number;
  readonly factor: number;
  /** Position of its first output in y. */
  readonly first: number;
  readonly accumulate: boolean;
}

function runSumWindow(k: KernelContext, x: Tensor, y: Tensor, { outer, ...params }: SumWindow): void {
  const outputs = outer * params.inner;
  const wide = params.inner >= WIDE;
  k.run(wide ? "sum/columns" : "sum/main", {
    bind: { x, y },
    params: { outputs, ...params },
    grid: wide ? Math.ceil(outputs / 64) : outputs,
  });
}

/** Dispatches y = factor · Σ x, in windows of the outer extent, or of the axis itself if it is the first. */
export function runSum(
  k: KernelContext,
  x: Tensor,
  y: Tensor,
  { outer, length, inner }: Dims,
  factor: number,
): void {
  const window = { outer, length, inner, factor, first: 0, accumulate: false };
  if (outer > 1) {
    for (const range of k.split(outer, [x])) {
      const first = range.start * inner;
      runSumWindow(k, k.rows(x, outer, range), y, { ...window, outer: range.count, first });
    }
    return;
  }
  const parts = length === 0 ? [NO_ROWS] : k.split(length, [x]);
  // Partial results in f16 would round after every window.
  const total = parts.length > 1 && y.dtype === "f16" ? k.temp(y.shape) : y;
  for (const range of parts) {
    const accumulate = range.start > 0;
    runSumWindow(k, k.rows(x, length, range), total, { ...window, length: range.count, accumulate });
  }
  if (total !== y) runConvert(k, total, y);
}

const attrs = { axis: null as number | null };

const inferReduction = (x: TensorSpec, axis: number | null): Inferred => ({
  dims: aroundAxis(x.shape, axis),
  outputs: [{ shape: withoutAxis(x.shape, axis), dtype: x.dtype }],
});

/** y = Σ x along the axis. */
function referenceSum({ x, y }: { x: HostArray; y: HostArray }, { outer, length, inner }: Dims): void {
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      let total = 0;
      for (let a = 0; a < length; a++) total += x[(o * length + a) * inner + i];
      y[o * inner + i] = total;
    }
  }
}

const drawReduction = (pick: TestRandom) => {
  const N = pick.shape(2000);
  return { dims: { N }, attrs: { axis: drawAxis(pick, N.length) } };
};

export const sum = defineOp({
  name: "sum",
  doc: "y = Σ x over one axis, or over all elements when axis is null",
  sig: "x[N..] -> y[M..]",
  attrs,
  infer: ([x], { axis }) => inferReduction(x, axis),
  reference: referenceSum,
  kernel: (k, { x, y }, dims) => runSum(k, x, y, dims, 1),
  draw: drawReduction,
  // Terms of both signs cancel: eps·length of the largest term, spread over partial sums.
  close: ({ length }) => ({ rel: (8 + Math.sqrt(length)) * EPS, abs: 1e-6 * Math.sqrt(length) }),
  flops: ({ N }) => N,
});

export const mean = defineOp({
  name: "mean",
  doc: "y = mean of x over one axis, or over all elements when axis is null; 0 for an empty axis. Sums are f32, so f16 does not overflow",
  sig: "x[N..] -> y[M..]",
  attrs,
  infer: ([x], { axis }) => inferReduction(x, axis),
  reference({ x, y }, dims) {
    referenceSum({ x, y }, dims);
    for (let i = 0; i < y.length; i++) y[i] /= Math.max(dims.length, 1);
  },
  kernel: (k, { x, y }, dims) => runSum(k, x, y, dims, 1 / Math.max(dims.length, 1)),
  draw: drawReduction,
  close: ({ length }) => ({ rel: (8 + Math.sqrt(length)) * EPS, abs: 1e-6 }), // as sum
  flops: ({ N }) => N,
});

export const broadcast = defineOp({
  name: "broadcast",
  doc: "y = x repeated along a new axis of the given length; axis null repeats a scalar over `shape`",
  sig: "x:number[N..] -> y:number[M..]",
  attrs: { shape: [] as readonly number[], axis: null as number | null },
  infer: ([x], { shape, axis }) => {
    const dims = aroundAxis(shape, axis);
    if (!sameShape(x.shape, withoutAxis(shape, axis))) {
      throw new SidenetError(
        "T-ATTR",
        `broadcast: ${formatShape(x.shape)} is not ${formatShape(shape)} without axis ${axis ?? "(all)"}.`,
      );
    }
    return { dims, outputs: [{ shape, dtype: x.dtype }] };
  },
  reference({ x, y }, { outer, length, inner }) {
    for (let o = 0; o < outer; o++) {
      for (let a = 0; a < length; a++) {
        for (let i = 0; i < inner; i++) y[(o * length + a) * inner + i] = x[o * inner + i];
      }
    }
  },
  kernel(k, { x, y }, { outer, length, inner }) {
    // In windows of the outer extent if there is one; a scalar, or a vector along a new first axis, is bound whole each time.
    const [rows, windowed] = outer > 1 ? [outer, [x, y]] : [length, [y]];
    for (const range of k.split(rows, windowed)) {
      const [count, source] = outer > 1 ? [length, k.rows(x, rows, range)] : [range.count, x];
      const size = (y.size / rows) * range.count;
      k.run("broadcast/main", {
        bind: { x: source, y: k.rows(y, rows, range) },
        params: { size, length: count, inner },
        grid: Math.ceil(size / 64),
      });
    }
  },
  draw: (pick) => {
    const shape = pick.shape(2000);
    const axis = drawAxis(pick, shape.length);
    return { dims: { N: withoutAxis(shape, axis) }, attrs: { shape, axis } };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});
