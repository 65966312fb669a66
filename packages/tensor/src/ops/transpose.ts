import { elementBytes, isFloat } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext } from "../op.ts";
import { hasEightLanes } from "../profile.ts";
import { formatShape, type Shape, sameShape, sizeOf } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { aroundAxis, axisOf, replaceAxis } from "./axis.ts";
import { copyRows } from "./copy-rows.ts";

/** Number of merged axes of kernels/transpose.wgsl. */
const MAX_AXES = 6;

/** The full permutation; by default it reverses the axes. Throws `T-ATTR` unless it names each axis once. */
export function permutationOf(shape: Shape, permutation: readonly number[]): readonly number[] {
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
    `transpose: ${formatShape(permutation)} does not name each of the ${shape.length} axes of ${formatShape(shape)} once.`,
  );
}

export interface SourceAxis {
  /** Extent in the output, and stride in x. */
  readonly extent: number;
  readonly stride: number;
}

/** Axes of the output with their strides in x, without those of extent 1; axes that are adjacent in x are merged. */
export function sourceAxes(shape: Shape, permutation: readonly number[]): SourceAxis[] {
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

/** Blocks of transpose-block.wgsl: 32 x 32 values, or 32 x 256 on software drivers, where workgroups are expensive. */
const BLOCKS = {
  usual: { LANES: 64, ACROSS: 8, STEPS: 1 },
  eightLanes: { LANES: 8, ACROSS: 1, STEPS: 64 },
} as const;

/** Dispatches transpose-block.wgsl, for one or several matrices with extents that are multiples of 4; returns false if x is not that. */
function runBlocks(k: KernelContext, x: Tensor, y: Tensor, axes: readonly SourceAxis[]): boolean {
  const [cols, rows] = axes.slice(-2);
  const batches = axes.length === 3 ? axes[0].extent : 1;
  const isMatrix = axes.length >= 2 && axes.length <= 3 && cols.stride === 1 && rows.stride === cols.extent;
  const inFours = isMatrix && rows.extent % 4 === 0 && cols.extent % 4 === 0;
  const isWhole = inFours && batches * rows.extent * cols.extent === x.size;
  const bytes = x.size * elementBytes(x.dtype);
  if (!isWhole || !isFloat(x.dtype) || bytes > k.profile.maxBindingBytes) return false;
  const consts = hasEightLanes(k.profile) ? BLOCKS.eightLanes : BLOCKS.usual;
  const down = Math.ceil(rows.extent / ((consts.LANES / consts.ACROSS) * 4));
  const across = Math.ceil(cols.extent / (consts.ACROSS * 4 * consts.STEPS));
  k.run("transpose-block/main", {
    bind: { x, y },
    params: { batches, rows: rows.extent, cols: cols.extent },
    grid: batches * down * across,
    consts,
  });
  return true;
}

/**
 * Dispatches transpose.wgsl in windows of the first axis of y and of the first axis of x, which is axis `outermost` of y; they may be the
 * same axis. A window of x is a range of that axis in every window of y, so its elements are not contiguous there.
 */
function runTranspose(k: KernelContext, x: Tensor, y: Tensor, axes: readonly SourceAxis[]): void {
  const [first] = axes;
  const outermost = axes.findIndex(({ extent, stride }) => extent * stride === x.size);
  const { extent } = axes[outermost];
  const together = outermost === 0;
  const below = sizeOf(axes.slice(outermost + 1).map((axis) => axis.extent)); // elements of y per row of x
  for (const target of k.split(first.extent, together ? [x, y] : [y])) {
    for (const source of together ? [target] : k.split(extent, [x])) {
      const extents = axes.map((axis) => axis.extent);
      extents[outermost] = source.count;
      extents[0] = target.count;
      const [d0, d1, d2, d3, d4, d5] = [...[...extents].reverse(), 1, 1, 1, 1, 1, 1];
      const strides = axes.map((axis) => axis.stride).reverse();
      const [s0, s1, s2, s3, s4, s5] = [...strides, 0, 0, 0, 0, 0, 0];
      k.run("transpose/main", {
        bind: { x: k.rows(x, extent, source), y: k.rows(y, first.extent, target) },
        params: {
          ...(together
            ? { start: 0, first: 0, run: sizeOf(extents), gap: 0 }
            : {
                start: target.start * first.stride,
                first: source.start * below,
                run: source.count * below,
                gap: (extent - source.count) * below,
              }),
          d0,
          d1,
          d2,
          d3,
          d4,
          d5,
          s0,
          s1,
          s2,
          s3,
          s4,
          s5,
        },
        grid: Math.ceil(sizeOf(extents) / 64),
      });
    }
  }
}

export const transpose = defineOp({
  name: "transpose",
  doc: "copies with axes in another order: axis i of y is axis permutation[i] of x; by default they are reversed",
  sig: "x:number[N..] -> y:number[M..]",
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
        `transpose: ${formatShape(permutation)} of ${formatShape(x.shape)} leaves ${axes.length} axes apart, at most ${MAX_AXES} go.`,
      );
    }
    if (axes.length === 0) axes.push({ extent: 1, stride: 1 });
    if (runBlocks(k, x, y, axes)) return;
    runTranspose(k, x, y, axes);
  },
  draw: (pick) => {
    if (pick.chance(0.3)) {
      const matrices = [pick.int(1, 3), 4 * pick.int(1, 20), 4 * pick.int(1, 20)];
      return { dims: { N: matrices }, attrs: { permutation: [0, 2, 1] } };
    }
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
  doc: "y = a, then b, along one axis; concatAll joins any number of tensors",
  sig: "a:number[A..] b:number[B..] -> y:number[Y..]",
  attrs: { axis: 0 },
  infer: ([a, b], { axis }) => {
    if (a.dtype !== b.dtype && !(isFloat(a.dtype) && isFloat(b.dtype))) {
      throw new SidenetError("T-DTYPE", `concat: a is ${a.dtype} and b ${b.dtype}; only floats mix.`);
    }
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
    copyRows(k, a, y, { rows: outer, size: length * inner });
    copyRows(k, b, y, { rows: outer, size: added * inner, toAt: length * inner });
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
