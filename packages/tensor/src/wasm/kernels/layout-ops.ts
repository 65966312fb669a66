/** Ops that only move elements: copies of rows, casts, and transposes. */
import { elementBytes } from "../../dtype.ts";
import { permutationOf, type SourceAxis, sourceAxes } from "../../ops/transpose.ts";
import { sizeOf } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { BAND, CHUNK, OUTER_AXES, PART } from "./tasks.ts";
import { chunks, rowTasks, SIMPLE_PER_NS } from "./work.ts";

interface Copy {
  readonly rows: number;
  /** Elements of a row, and the row strides in elements. */
  readonly size: number;
  readonly fromRow: number;
  readonly toRow: number;
  /** The first element. */
  readonly fromAt?: number;
  readonly toAt?: number;
}

/** All of a tensor. */
const wholeOf = ({ size }: Tensor): Copy => ({ rows: 1, size, fromRow: size, toRow: size });

function runCopy(k: WasmContext, from: Tensor, to: Tensor, copy = wholeOf(from)): void {
  const { size, fromRow, toRow, fromAt = 0, toAt = 0 } = copy;
  const bytes = elementBytes(from.dtype);
  const { rows, split } = rowTasks(copy.rows, size);
  const args = { from, fromAt: bytes * fromAt, to, toAt: bytes * toAt, n: copy.rows, rows };
  k.run("copyRows", { ...args, bytes: bytes * size, fromRow: bytes * fromRow, toRow: bytes * toRow }, split);
}

export const slice: WasmOp = (
  k,
  { x, y }: { x: Tensor; y: Tensor },
  { outer, length, inner },
  { start, count }: { start: number; count: number },
) => {
  const size = count * inner;
  runCopy(k, x, y, { rows: outer, size, fromRow: length * inner, toRow: size, fromAt: start * inner });
  return true;
};

export const cacheWrite: WasmOp = (
  k,
  { cache, x }: { cache: Tensor; x: Tensor },
  { B, S, T, C },
  { offset }: { offset: number },
) => {
  if (cache.dtype !== x.dtype) return false;
  runCopy(k, x, cache, { rows: B, size: T * C, fromRow: T * C, toRow: S * C, toAt: offset * C });
  return true;
};

export const concat: WasmOp = (
  k,
  { a, b, y }: Record<"a" | "b" | "y", Tensor>,
  { outer, length, added, inner },
) => {
  if (a.dtype !== b.dtype) return false;
  const toRow = (length + added) * inner;
  for (const [x, extent, start] of [[a, length, 0] as const, [b, added, length] as const]) {
    const size = extent * inner;
    runCopy(k, x, y, { rows: outer, size, fromRow: size, toRow, toAt: start * inner });
  }
  return true;
};

export const sliceBackward: WasmOp = (
  k,
  { dy, dx }: Record<"dy" | "dx", Tensor>,
  { outer, count, inner },
  { start, length }: { start: number; length: number },
) => {
  if (dx.dtype !== "f32") return false;
  if (count < length) k.run("fill", { x: dx, n: dx.size, value: 0 }, chunks(dx.size));
  const size = count * inner;
  runCopy(k, dy, dx, { rows: outer, size, fromRow: size, toRow: length * inner, toAt: start * inner });
  return true;
};

export const cast: WasmOp = (k, { x, y }: { x: Tensor; y: Tensor }) => {
  if (x.dtype === y.dtype) runCopy(k, x, y);
  else k.run(x.dtype === "f16" ? "widen" : "narrowSaturated", { x, y, n: x.size }, chunks(x.size));
  return true;
};

/** An axis of the output of a transpose. */
interface MovedAxis extends SourceAxis {
  /** The stride in y, in elements. */
  readonly yStride: number;
}

/** Arguments for the axes around the two that a unit of work covers. */
function outerArgs(axes: readonly MovedAxis[], bytes: number): Record<string, number> {
  const args: Record<string, number> = {};
  for (let i = 0; i < OUTER_AXES; i++) {
    const { extent, stride, yStride } = axes.at(-1 - i) ?? { extent: 1, stride: 0, yStride: 0 };
    args[`extent${i}`] = extent;
    args[`x${i}`] = stride * bytes;
    args[`y${i}`] = yStride * bytes;
  }
  return args;
}

export const transpose: WasmOp = (
  k,
  { x, y }: { x: Tensor; y: Tensor },
  _,
  { permutation }: { permutation: readonly number[] },
) => {
  const bytes = elementBytes(x.dtype);
  const axes: MovedAxis[] = sourceAxes(x.shape, permutationOf(x.shape, permutation)).map((axis, i, all) => ({
    ...axis,
    yStride: sizeOf(all.slice(i + 1).map(({ extent }) => extent)),
  }));
  if (axes.length < 2) {
    runCopy(k, x, y);
    return true;
  }
  const last = axes.pop()!;
  const isRun = last.stride === 1;
  const columns = isRun
    ? last
    : axes.splice(
        axes.findIndex(({ stride }) => stride === 1),
        1,
      )[0];
  const rows = isRun ? axes.pop()! : last;
  if (axes.length > OUTER_AXES) return false;
  const parts = Math.ceil(rows.extent / PART);
  const bands = isRun ? 1 : Math.ceil(columns.extent / BAND);
  const n = parts * bands * sizeOf(axes.map(({ extent }) => extent));
  const each = Math.max(1, Math.floor((CHUNK * n) / x.size));
  const split = { tasks: Math.ceil(n / each), work: x.size / SIMPLE_PER_NS };
  const args = {
    x,
    y,
    n,
    each,
    rows: rows.extent,
    parts,
    bands,
    ...outerArgs(axes, bytes),
    xRow: rows.stride * bytes,
  };
  if (isRun) {
    k.run("permuteRuns", { ...args, cols: columns.extent * bytes, yRow: rows.yStride * bytes }, split);
  } else {
    const kernel = bytes === 4 ? "permuteBlocks4" : "permuteBlocks2";
    k.run(kernel, { ...args, cols: columns.extent, yCol: columns.yStride * bytes }, split);
  }
  return true;
};
