import { SidenetError } from "../errors.ts";
import { defineOp } from "../op.ts";
import { formatShape, type Shape, sameShape, sizeOf } from "../shape.ts";

/**
 * A shape seen as [outer, length, inner] around one axis; all of it is the axis when that is null.
 * Throws `T-ATTR` for an axis that the shape does not have.
 */
export function aroundAxis(
  shape: Shape,
  axis: number | null,
): { outer: number; length: number; inner: number } {
  if (axis === null) return { outer: 1, length: sizeOf(shape), inner: 1 };
  if (!Number.isInteger(axis) || axis < 0 || axis >= shape.length) {
    throw new SidenetError(
      "T-ATTR",
      `axis ${axis} is not one of the ${shape.length} axes of ${formatShape(shape)}.`,
    );
  }
  return { outer: sizeOf(shape.slice(0, axis)), length: shape[axis], inner: sizeOf(shape.slice(axis + 1)) };
}

const withoutAxis = (shape: Shape, axis: number | null): Shape =>
  axis === null ? [] : [...shape.slice(0, axis), ...shape.slice(axis + 1)];

const drawAxis = (rank: number, unit: number): number | null =>
  unit < 0.2 || rank === 0 ? null : Math.floor(unit * 97) % rank;

export const sum = defineOp({
  name: "sum",
  doc: "y = Σ x over one axis, or over all elements when axis is null",
  sig: "x[N..] -> y[M..]",
  attrs: { axis: null as number | null },
  infer: ([x], { axis }) => ({
    dims: aroundAxis(x.shape, axis),
    outputs: [{ shape: withoutAxis(x.shape, axis), dtype: x.dtype }],
  }),
  reference({ x, y }, { outer, length, inner }) {
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let total = 0;
        for (let a = 0; a < length; a++) total += x[(o * length + a) * inner + i];
        y[o * inner + i] = total;
      }
    }
  },
  kernel(k, { x, y }, { outer, length, inner }) {
    k.run("sum/main", {
      bind: { x, y },
      params: { outputs: outer * inner, length, inner },
      grid: outer * inner,
    });
  },
  draw: (pick) => {
    const N = pick.shape(2000);
    return { dims: { N }, attrs: { axis: drawAxis(N.length, pick.unit()) } };
  },
  // Terms of both signs cancel: eps·length of the largest term, spread over partial sums.
  close: ({ length }) => ({ rel: (8 + Math.sqrt(length)) * 2 ** -23, abs: 1e-6 * Math.sqrt(length) }),
  flops: ({ N }) => N,
});

export const broadcast = defineOp({
  name: "broadcast",
  doc: "y = x repeated along a new axis of the given length; axis null repeats a scalar over `shape`",
  sig: "x[N..] -> y[M..]",
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
    const size = outer * length * inner;
    k.run("broadcast/main", { bind: { x, y }, params: { size, length, inner }, grid: Math.ceil(size / 64) });
  },
  draw: (pick) => {
    const shape = pick.shape(2000);
    const axis = drawAxis(shape.length, pick.unit());
    return { dims: { N: withoutAxis(shape, axis) }, attrs: { shape, axis } };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

export const argmax = defineOp({
  name: "argmax",
  doc: "index of the largest element of the last axis, the first of equals",
  sig: "x[N..,C] -> y:i32[N..]",
  check: ({ C }) => (C > 0 ? null : "an empty axis has no largest element"),
  reference({ x, y }, { N, C }) {
    for (let n = 0; n < N; n++) {
      let best = 0;
      for (let c = 1; c < C; c++) if (x[n * C + c] > x[n * C + best]) best = c;
      y[n] = best;
    }
  },
  kernel(k, { x, y }, { N, C }) {
    for (const range of k.split(N, [x])) {
      k.run("argmax/main", {
        bind: { x: k.rows(x, N, range), y },
        params: { n: range.count, c: C, first: range.start },
        grid: range.count,
      });
    }
  },
  draw: (pick) => ({ dims: { N: pick.shape(30, 2), C: pick.int(1, 300) } }),
  close: { rel: 0 },
  flops: ({ N, C }) => N * C,
});
