import { SidenetError } from "../errors.ts";
import { COUNT, defineOp } from "../op.ts";
import { formatShape, type Shape } from "../shape.ts";
import { aroundAxis, axisOf, replaceAxis } from "./axis.ts";
import { copyRows } from "./copy-rows.ts";

export const reshape = defineOp({
  name: "reshape",
  doc: "the same elements in row-major order under another shape; shares the memory",
  sig: "x:any[N..] -> y:any[M..]",
  attrs: { shape: [] as readonly number[] },
  infer: ([x], { shape }) => ({ outputs: [{ shape, dtype: x.dtype }] }),
  view: true,
  reference({ x, y }) {
    for (let i = 0; i < x.length; i++) y[i] = x[i];
  },
  kernel() {}, // a view: never dispatched
  draw: (pick) => {
    const N = pick.shape(500);
    return { dims: { N }, attrs: { shape: [...N].reverse() } };
  },
  close: { rel: 0 },
  flops: () => 0,
});

/** Attributes of a range of one axis: elements `start .. start + count`. */
function checkPart(op: string, shape: Shape, axis: number, start: number, count: number): void {
  if (
    Number.isInteger(start) &&
    Number.isInteger(count) &&
    start >= 0 &&
    count >= 0 &&
    start + count <= shape[axisOf(shape, axis)]
  )
    return;
  throw new SidenetError(
    "T-ATTR",
    `${op}: elements ${start} .. ${start + count} are not within axis ${axis} of ${formatShape(shape)}.`,
  );
}

export const slice = defineOp({
  name: "slice",
  doc: "elements start .. start + count of one axis, copied",
  sig: "x:number[N..] -> y:number[M..]",
  attrs: { axis: 0, start: 0, count: 0 },
  infer: ([x], { axis, start, count }) => {
    const dims = aroundAxis(x.shape, axis);
    checkPart("slice", x.shape, axis, start, count);
    return { dims, outputs: [{ shape: replaceAxis(x.shape, axis, count), dtype: x.dtype }] };
  },
  reference({ x, y }, { outer, length, inner }, { start, count }) {
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < count * inner; i++) y[o * count * inner + i] = x[(o * length + start) * inner + i];
    }
  },
  kernel: (k, { x, y }, { outer, inner }, { start, count }) =>
    copyRows(k, x, y, { rows: outer, size: count * inner, fromAt: start * inner }),
  draw: (pick) => {
    const N = [pick.int(1, 9), pick.int(1, 20), pick.int(1, 12)];
    const axis = pick.int(0, 2);
    const start = pick.int(0, N[axis]);
    return { dims: { N }, attrs: { axis, start, count: pick.int(0, N[axis] - start) } };
  },
  close: { rel: 0 },
  flops: () => 0,
});

export const sliceBackward = defineOp({
  name: "sliceBackward",
  doc: "zeros of the given length along the axis, with dy at start: the gradient of slice",
  sig: "dy[M..] -> dx[N..]",
  attrs: { axis: 0, start: 0, length: 0 },
  infer: ([dy], { axis, start, length }) => {
    const { outer, length: count, inner } = aroundAxis(dy.shape, axis);
    const shape = replaceAxis(dy.shape, axis, length);
    checkPart("sliceBackward", shape, axis, start, count);
    return { dims: { outer, count, inner }, outputs: [{ shape, dtype: dy.dtype }] };
  },
  reference({ dy, dx }, { outer, count, inner }, { start, length }) {
    for (let o = 0; o < outer; o++) {
      for (let i = 0; i < count * inner; i++)
        dx[(o * length + start) * inner + i] = dy[o * count * inner + i];
    }
  },
  kernel: (k, { dy, dx }, { outer, count, inner }, { start }) =>
    copyRows(k, dy, dx, { rows: outer, size: count * inner, toAt: start * inner }, "pad"),
  draw: (pick) => {
    const M = [pick.int(1, 9), pick.int(0, 20), pick.int(1, 12)];
    const axis = pick.int(0, 2);
    const start = pick.int(0, 5);
    return { dims: { M }, attrs: { axis, start, length: start + M[axis] + pick.int(0, 5) } };
  },
  close: { rel: 0 },
  flops: () => 0,
});

export const cacheWrite = defineOp({
  name: "cacheWrite",
  doc: "writes x into the cache at positions offset .. offset + T, in place: appends to a key-value cache",
  sig: "cache![B,S,C..] x[B,T,C..] ->",
  attrs: { offset: 0 },
  ranges: { offset: COUNT },
  check: ({ S, T }, { offset }) =>
    offset + T <= S ? null : `positions ${offset} .. ${offset + T} are not within a cache of S=${S}`,
  reference({ cache, x }, { B, S, T, C }, { offset }) {
    for (let b = 0; b < B; b++) {
      for (let i = 0; i < T * C; i++) cache[(b * S + offset) * C + i] = x[b * T * C + i];
    }
  },
  kernel: (k, { cache, x }, { B, T, C }, { offset }) =>
    copyRows(k, x, cache, { rows: B, size: T * C, toAt: offset * C }),
  draw: (pick) => {
    const T = pick.int(1, 9);
    const offset = pick.int(0, 9);
    const dims = {
      B: pick.int(1, 3),
      T,
      S: offset + T + pick.int(0, 4),
      C: [pick.int(1, 4), pick.int(1, 9)],
    };
    return { dims, attrs: { offset } };
  },
  close: { rel: 0 },
  flops: () => 0,
});
