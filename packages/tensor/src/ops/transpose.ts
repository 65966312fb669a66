import { SidenetError } from "../errors.ts";
import { defineOp } from "../op.ts";
import { formatShape, type Shape, sameShape, sizeOf } from "../shape.ts";
import { aroundAxis, axisOf, replaceAxis } from "./axis.ts";

/** Runs of axes that kernels/transpose.wgsl takes apart. */
const MAX_AXES = 6;

/** The permutation in full: none given reverses all axes. Throws `T-ATTR` unless it names each axis once. */
function permutationOf(shape: Shape, permutation: readonly number[]): readonly number[] {
  const axes = [...shape.keys()];
  if (permutation.length === 0) return axes.reverse();
  if (
    sameShape(
      [...permutation].sort((a, b) => a - b),
      axes,
    )
  )
    return permutation;
  throw new SidenetError(
    "T-ATTR",
    `transpose: [${permutation}] does not name each of the ${shape.length} axes of ${formatShape(shape)} once.`,
  );
}

interface SourceAxis {
  /** Extent in the output, and stride in x. */
  readonly extent: number;
  readonly stride: number;
}

/** Axes of the output in order, with their strides in x; those of extent 1 left out, neighbours in x joined. */
function sourceAxes(shape: Shape, permutation: readonly number[]): SourceAxis[] {
  const joined: SourceAxis[] = [];
  for (const axis of permutation) {
    const extent = shape[axis];
    const stride = sizeOf(shape.slice(axis + 1));
    if (extent === 1) continue;
    const last = joined.at(-1);
    if (last && last.stride === extent * stride) {
      joined[joined.length - 1] = { extent: last.extent * extent, stride };
    } else joined.push({ extent, stride });
  }
  return joined;
}

export const transpose = defineOp({
  name: "transpose",
  doc: "axes in another order, copied: axis i of y is axis permutation[i] of x; without a permutation they are reversed",
  sig: "x[N..] -> y[M..]",
  attrs: { permutation: [] as readonly number[] },
  infer: ([x], { permutation }) => {
    const axes = permutationOf(x.shape, permutation);
    return { outputs: [{ shape: axes.map((axis) => x.shape[axis]), dtype: x.dtype }] };
  },
  reference({ x, y }, _dims, { permutation }, shapes) {
    const axes = permutationOf(shapes.x, permutation);
    for (let i = 0; i < y.length; i++) {
      let rest = i;
      let source = 0;
      for (let axis = axes.length - 1; axis >= 0; axis--) {
        source += (rest % shapes.y[axis]) * sizeOf(shapes.x.slice(axes[axis] + 1));
        rest = Math.floor(rest / shapes.y[axis]);
      }
      y[i] = x[source];
    }
  },
  kernel(k, { x, y }, _dims, { permutation }) {
    if (y.size === 0) return;
    const axes = sourceAxes(x.shape, permutationOf(x.shape, permutation));
    if (axes.length > MAX_AXES) {
      throw new SidenetError(
        "T-SHAPE",
        `transpose: [${permutation}] of ${formatShape(x.shape)} leaves ${axes.length} axes apart, at most ${MAX_AXES} go.`,
      );
    }
    const [first = { extent: 1, stride: x.size }, ...inner] = axes;
    // Windows of y's first axis; those of x too when it is the first there as well.
    const together = first.stride * first.extent === x.size;
    for (const range of k.split(first.extent, together ? [x, y] : [y])) {
      // What precedes the window in x goes with the binding, or, in a whole x, with an axis that starts later.
      const extents = [range.count, ...inner.map(({ extent }) => extent)].reverse();
      const [d0, d1, d2, d3, d4, d5] = [...extents, 1, 1, 1, 1, 1, 1];
      const strides = [first.stride, ...inner.map(({ stride }) => stride)].reverse();
      const [s0, s1, s2, s3, s4, s5] = [...strides, 0, 0, 0, 0, 0, 0];
      k.run("transpose/main", {
        bind: { x: together ? k.rows(x, first.extent, range) : x, y: k.rows(y, first.extent, range) },
        params: {
          ...{ size: sizeOf(extents), rank: extents.length },
          ...{ start: together ? 0 : range.start * first.stride },
          ...{ d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5 },
        },
        grid: Math.ceil(sizeOf(extents) / 64),
      });
    }
  },
  draw: (pick) => {
    const N = Array.from({ length: pick.int(0, 6) }, () => pick.int(pick.chance(0.05) ? 0 : 1, 5));
    const permutation = [...N.keys()];
    for (let i = permutation.length - 1; i > 0; i--) {
      const other = pick.int(0, i);
      [permutation[i], permutation[other]] = [permutation[other], permutation[i]];
    }
    return { dims: { N }, attrs: { permutation: pick.chance(0.2) ? [] : permutation } };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});

export const concat = defineOp({
  name: "concat",
  doc: "a, then b, along one axis; concatAll joins any number of tensors",
  sig: "a[A..] b[B..] -> y[Y..]",
  attrs: { axis: 0 },
  infer: ([a, b], { axis }) => {
    const { outer, length, inner } = aroundAxis(a.shape, axis);
    const added = b.shape[axisOf(a.shape, axis)] ?? 0;
    if (!sameShape(b.shape, replaceAxis(a.shape, axis, added))) {
      throw new SidenetError(
        "T-SHAPE",
        `concat: ${formatShape(a.shape)} and ${formatShape(b.shape)} differ beside axis ${axis}.`,
      );
    }
    const shape = replaceAxis(a.shape, axis, length + added);
    return { dims: { outer, length, added, inner }, outputs: [{ shape, dtype: a.dtype }] };
  },
  reference({ a, b, y }, { outer, length, added, inner }) {
    for (let o = 0; o < outer; o++) {
      const at = o * (length + added) * inner;
      for (let i = 0; i < length * inner; i++) y[at + i] = a[o * length * inner + i];
      for (let i = 0; i < added * inner; i++) y[at + length * inner + i] = b[o * added * inner + i];
    }
  },
  kernel(k, { a, b, y }, { outer, length, added, inner }) {
    for (const range of k.split(outer, [a, b, y])) {
      const cache = k.rows(y, outer, range);
      for (const [x, t, offset] of [[a, length, 0] as const, [b, added, length] as const]) {
        const size = range.count * t * inner;
        k.run("cache-write/main", {
          bind: { cache, x: k.rows(x, outer, range) },
          params: { size, s: length + added, t, c: inner, offset },
          grid: Math.ceil(size / 64),
        });
      }
    }
  },
  draw: (pick) => {
    const A = [pick.int(1, 9), pick.int(1, 20), pick.int(1, 12)].slice(pick.int(0, 2));
    const axis = pick.int(0, A.length - 1) - (pick.chance(0.3) ? A.length : 0);
    const [a, b] = [pick.int(0, 20), pick.int(0, 20)];
    return { dims: { A: replaceAxis(A, axis, a), B: replaceAxis(A, axis, b) }, attrs: { axis } };
  },
  close: { rel: 0 }, // a copy
  flops: () => 0,
});
