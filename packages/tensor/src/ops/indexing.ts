import { EPS } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp } from "../op.ts";
import { formatShape, sameShape } from "../shape.ts";
import type { TestRandom } from "../test-random.ts";
import { aroundAxis, axisOf, replaceAxis } from "./axis.ts";

/** Draws a shape, an axis counted from either end, and how many elements to gather along it. */
const drawPicks = (pick: TestRandom) => {
  const shape = [pick.int(1, 6), pick.int(1, 80), pick.int(1, 6)].slice(pick.int(0, 2));
  const axis = pick.int(0, shape.length - 1) - (pick.chance(0.3) ? shape.length : 0);
  const length = shape[axisOf(shape, axis)];
  return { shape, axis, length, picked: replaceAxis(shape, axis, pick.int(0, 70)) };
};

export const gatherAlong = defineOp({
  name: "gatherAlong",
  doc:
    "y[.., j, ..] = x[.., ids[.., j, ..], ..] along one axis, as NumPy's take_along_axis; an id outside the axis gives 0. " +
    "Whole rows by index are embedding",
  sig: "x:number[N..] ids:i32[M..] -> y:number[M..]",
  attrs: { axis: -1 },
  infer: ([x, ids], { axis }) => {
    const { outer, length, inner } = aroundAxis(x.shape, axis);
    const count = ids.shape[axisOf(x.shape, axis)] ?? 0;
    if (!sameShape(ids.shape, replaceAxis(x.shape, axis, count))) {
      throw new SidenetError(
        "T-SHAPE",
        `gatherAlong: ids ${formatShape(ids.shape)} differ from x ${formatShape(x.shape)} beside axis ${axis}.`,
      );
    }
    return { dims: { outer, length, inner, count }, outputs: [{ shape: ids.shape, dtype: x.dtype }] };
  },
  reference({ x, ids, y }, { outer, length, inner, count }) {
    for (let o = 0; o < outer; o++) {
      for (let j = 0; j < count * inner; j++) {
        const id = ids[o * count * inner + j];
        if (id >= 0 && id < length) y[o * count * inner + j] = x[(o * length + id) * inner + (j % inner)];
      }
    }
  },
  kernel(k, { x, ids, y }, { outer, length, inner, count }) {
    for (const range of k.split(outer, [x, ids, y])) {
      const size = range.count * count * inner;
      k.run("gather-along/forward", {
        bind: { x: k.rows(x, outer, range), ids: k.rows(ids, outer, range), y: k.rows(y, outer, range) },
        params: { size, length, inner, count },
        grid: Math.ceil(size / 64),
      });
    }
  },
  draw: (pick) => {
    const { shape, axis, length, picked } = drawPicks(pick);
    return {
      dims: { N: shape, M: picked },
      attrs: { axis },
      values: { ids: (size) => pick.ints(size, -1, length) },
    };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

export const gatherAlongBackward = defineOp({
  name: "gatherAlongBackward",
  doc: "dx[.., a, ..] = Σ dy[.., j, ..] over j with ids[.., j, ..] = a, in order of j, so that results are the same on every run",
  sig: "dy[M..] ids:i32[M..] -> dx[N..]",
  attrs: { axis: -1, length: 0 },
  infer: ([dy], { axis, length }) => {
    const { outer, length: count, inner } = aroundAxis(dy.shape, axis);
    const outputs = [{ shape: replaceAxis(dy.shape, axis, length), dtype: dy.dtype }];
    return { dims: { outer, count, inner }, outputs };
  },
  reference({ dy, ids, dx }, { outer, count, inner }, { length }) {
    for (let o = 0; o < outer; o++) {
      for (let j = 0; j < count * inner; j++) {
        const id = ids[o * count * inner + j];
        if (id >= 0 && id < length) dx[(o * length + id) * inner + (j % inner)] += dy[o * count * inner + j];
      }
    }
  },
  kernel(k, { dy, ids, dx }, { outer, count, inner }, { length }) {
    for (const range of k.split(outer, [dy, ids, dx])) {
      const size = range.count * length * inner;
      k.run("gather-along/backward", {
        bind: { x: k.rows(dy, outer, range), ids: k.rows(ids, outer, range), y: k.rows(dx, outer, range) },
        params: { size, length, inner, count },
        grid: Math.ceil(size / 64),
      });
    }
  },
  draw: (pick) => {
    const { axis, length, picked } = drawPicks(pick);
    return {
      dims: { M: picked },
      attrs: { axis, length },
      values: { ids: (size) => pick.ints(size, -1, length) },
    };
  },
  // A sum has at most `count` terms, which may cancel, as in embeddingBackward.
  close: ({ count }) => ({ rel: (1 + count) * EPS, abs: count * EPS }),
  flops: ({ M }) => M,
});

export const cumsum = defineOp({
  name: "cumsum",
  doc: "y[.., a, ..] = Σ x[.., b, ..] over b ≤ a along one axis; over b ≥ a in reverse",
  sig: "x[N..] -> y[N..]",
  attrs: { axis: -1, reverse: false },
  infer: ([x], { axis }) => ({
    dims: aroundAxis(x.shape, axis),
    outputs: [{ shape: x.shape, dtype: x.dtype }],
  }),
  reference({ x, y }, { outer, length, inner }, { reverse }) {
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < inner; i++) {
        let total = 0;
        for (let a = 0; a < length; a++) {
          const at = (o * length + (reverse ? length - 1 - a : a)) * inner + i;
          total += x[at];
          y[at] = total;
        }
      }
    }
  },
  kernel(k, { x, y }, { outer, length, inner }, { reverse }) {
    for (const range of k.split(outer, [x, y])) {
      const lines = range.count * inner;
      k.run("cumsum/main", {
        bind: { x: k.rows(x, outer, range), y: k.rows(y, outer, range) },
        params: { lines, length, inner, reverse },
        grid: lines,
      });
    }
  },
  draw: (pick) => {
    const { shape, axis } = drawPicks(pick);
    return { dims: { N: shape }, attrs: { axis, reverse: pick.chance(0.5) } };
  },
  // Up to `length` terms of both signs, in ranges of length / 64.
  close: ({ length }) => ({ rel: (8 + Math.sqrt(length)) * EPS, abs: 1e-6 * Math.sqrt(length) }),
  flops: ({ N }) => 2 * N,
});
