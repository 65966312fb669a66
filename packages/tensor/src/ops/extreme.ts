import { SidenetError } from "../errors.ts";
import { defineOp, type Inferred, type KernelContext } from "../op.ts";
import { formatShape } from "../shape.ts";
import type { Dims, TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { aroundAxis, drawAxis, replaceAxis, withoutAxis } from "./axis.ts";

/**
 * Specs of an output without the axis, and of one that keeps it with length 1, as gatherAlong's ids have it. Throws `T-SHAPE` for
 * an empty axis.
 */
function inferExtreme(op: string, x: TensorSpec, axis: number | null, dtype: TensorSpec["dtype"]): Inferred {
  const dims = aroundAxis(x.shape, axis);
  if (dims.length === 0) {
    throw new SidenetError("T-SHAPE", `${op}: axis ${axis ?? "(all)"} of ${formatShape(x.shape)} is empty.`);
  }
  const kept = axis === null ? [1] : replaceAxis(x.shape, axis, 1);
  return {
    dims,
    outputs: [
      { shape: withoutAxis(x.shape, axis), dtype },
      { shape: kept, dtype: "i32" },
    ],
  };
}

/** Calls `found` with each output, its largest element and that element's position along the axis, the first of equals. */
function eachExtreme(
  x: ArrayLike<number>,
  { outer, length, inner }: Dims,
  direction: number,
  found: (out: number, value: number, index: number) => void,
): void {
  for (let o = 0; o < outer; o++) {
    for (let i = 0; i < inner; i++) {
      const at = (a: number) => x[(o * length + a) * inner + i];
      let best = 0;
      for (let a = 1; a < length; a++) if (direction * at(a) > direction * at(best)) best = a;
      found(o * inner + i, at(best), best);
    }
  }
}

function runExtreme(
  k: KernelContext,
  { x, value, index }: { x: Tensor; value: Tensor | null; index: Tensor | null },
  { outer, length, inner }: Dims,
  direction: number,
): void {
  // In windows of the outer extent, or of the axis itself if it is the first.
  const isFirst = outer === 1;
  const rows = isFirst ? length : outer;
  const windows = k.split(rows, [x]);
  const best = value ?? (isFirst && windows.length > 1 ? k.temp([inner]) : null); // the result so far, for the next window
  for (const range of windows) {
    const outputs = isFirst ? inner : range.count * inner;
    k.run("extreme/main", {
      bind: { x: k.rows(x, rows, range), value: best, index },
      params: {
        outputs,
        length: isFirst ? range.count : length,
        inner,
        direction,
        first: isFirst ? 0 : range.start * inner,
        base: isFirst ? range.start : 0,
        hasValue: best !== null,
        hasIndex: index !== null,
        continued: isFirst && range.start > 0,
      },
      grid: outputs,
    });
  }
}

/** Draws a shape without empty axes, an axis of it, and distinct values. */
const drawDistinct = (pick: TestRandom) => {
  const N = [pick.int(1, 9), pick.int(1, 140), pick.int(1, 5)].slice(pick.int(0, 2));
  return {
    dims: { N },
    attrs: { axis: drawAxis(pick, N.length) },
    values: { x: (size: number) => pick.distinct(size) },
  };
};

/** The row of max or min: the largest element times `direction`. */
const extreme = (name: "max" | "min", adjective: string, direction: 1 | -1) =>
  defineOp({
    name,
    doc:
      `y = the ${adjective} x of one axis, or of all elements when axis is null; the residual index is where, the first of ` +
      "equals, the axis kept at length 1",
    sig: "x[N..] -> y[M..] | index:i32[I..]",
    attrs: { axis: null as number | null },
    infer: ([x], { axis }) => inferExtreme(name, x, axis, x.dtype),
    reference({ x, y, index }, dims) {
      eachExtreme(x, dims, direction, (out, value, at) => {
        y[out] = value;
        if (index) index[out] = at;
      });
    },
    kernel: (k, { x, y, index }, dims) => runExtreme(k, { x, value: y, index }, dims, direction),
    draw: drawDistinct,
    close: { rel: 0 }, // a copy
    flops: ({ N }) => N,
  });

export const max = extreme("max", "largest", 1);
export const min = extreme("min", "smallest", -1);

export const argmax = defineOp({
  name: "argmax",
  doc: "position of the largest element of one axis, or among all elements when axis is null; the first of equals",
  sig: "x[N..] -> y:i32[M..]",
  attrs: { axis: -1 as number | null },
  nullable: ["axis"],
  infer: ([x], { axis }) => inferExtreme("argmax", x, axis, "i32"),
  reference({ x, y }, dims) {
    eachExtreme(x, dims, 1, (out, _value, at) => {
      y[out] = at;
    });
  },
  kernel: (k, { x, y }, dims) => runExtreme(k, { x, value: null, index: y }, dims, 1),
  // Few different values, so that equal ones are frequent; the first has to win.
  draw: (pick) => ({ ...drawDistinct(pick), values: { x: (size: number) => pick.ints(size, -3, 3) } }),
  close: { rel: 0 },
  flops: ({ N }) => N,
});

export const topK = defineOp({
  name: "topK",
  doc: "positions of the `count` largest elements of the last axis, in descending order, the first of equals first",
  sig: "x[N..,C] -> ids:i32[N..,K]",
  attrs: { count: 1 },
  infer: ([x], { count }) => {
    const C = x.shape[x.shape.length - 1];
    if (!Number.isInteger(count) || count < 0 || count > C) {
      throw new SidenetError(
        "T-ATTR",
        `topK: count is ${count}, the last axis of ${formatShape(x.shape)} has ${C}.`,
      );
    }
    return { outputs: [{ shape: [...x.shape.slice(0, -1), count], dtype: "i32" }] };
  },
  reference({ x, ids }, { N, C, K }) {
    for (let n = 0; n < N; n++) {
      const row = x.slice(n * C, (n + 1) * C);
      const order = [...row.keys()].sort((i, j) => row[j] - row[i] || i - j);
      for (let j = 0; j < K; j++) ids[n * K + j] = order[j];
    }
  },
  kernel(k, { x, ids }, { N, C, K }) {
    for (const range of k.split(N, [x])) {
      k.run("top-k/main", {
        bind: { x: k.rows(x, N, range), ids },
        params: { n: range.count, c: C, k: K, first: range.start },
        grid: range.count,
      });
    }
  },
  draw: (pick) => {
    const C = pick.int(1, 200);
    const x = (size: number) => (pick.chance(0.5) ? pick.normals(size) : pick.ints(size, -5, 5));
    return {
      dims: { N: pick.shape(12, 2), C },
      attrs: { count: pick.int(0, Math.min(C, 20)) },
      values: { x },
    };
  },
  close: { rel: 0 },
  flops: ({ N, C, K }) => N * C * K,
});
