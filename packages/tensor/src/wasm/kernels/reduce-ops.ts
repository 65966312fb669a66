/** Sums and clipping. */
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { SUM_CHUNK } from "./tasks.ts";
import { isF32, rowTasks, SIMPLE_PER_NS } from "./work.ts";

/** Columns of a task that sums over rows, and the inner extent from which columns are vectors. */
const SUM_COLS = 64;
const WIDE = 4;

/** y = factor · Σ over all of x, or of its squares, by partial sums of fixed length. */
function runSumOfAll(
  k: WasmContext,
  kernel: "partialSums" | "partialSquares",
  { x, y }: { x: Tensor; y: Tensor },
  { factor = 1, accumulate = false },
): void {
  const parts = Math.ceil(x.size / SUM_CHUNK);
  const partials = k.temp([parts]);
  k.run(kernel, { x, y: partials, n: x.size }, { tasks: parts, work: x.size / SIMPLE_PER_NS });
  k.run("finishSum", { partials, y, n: parts, factor, accumulate }, { tasks: 1, work: parts });
}

interface Extents {
  readonly outer: number;
  readonly length: number;
  readonly inner: number;
}

function runSum(
  k: WasmContext,
  io: { x: Tensor; y: Tensor },
  { outer, length, inner }: Extents,
  factor: number,
) {
  if (!isF32(io) || (inner > 1 && inner < WIDE)) return false;
  if (outer === 1 && inner === 1) runSumOfAll(k, "partialSums", io, { factor });
  else if (inner === 1) {
    const { rows, split } = rowTasks(outer, length);
    k.run("sumRows", { ...io, n: outer, c: length, factor, rows }, split);
  } else {
    const parts = Math.ceil(inner / SUM_COLS);
    const split = { tasks: outer * parts, work: (outer * length * inner) / SIMPLE_PER_NS };
    k.run("sumColumns", { ...io, length, inner, factor, cols: SUM_COLS, parts }, split);
  }
  return true;
}

export const sum: WasmOp = (k, io, { outer, length, inner }) => runSum(k, io, { outer, length, inner }, 1);
export const mean: WasmOp = (k, io, { outer, length, inner }) =>
  runSum(k, io, { outer, length, inner }, 1 / Math.max(length, 1));

export const sumSquares: WasmOp = (k, { total, x }: { total: Tensor; x: Tensor }) => {
  if (!isF32({ x })) return false;
  runSumOfAll(k, "partialSquares", { x, y: total }, { accumulate: true });
  return true;
};

export const clipFactor: WasmOp = (
  k,
  io: Record<"sumSquares" | "factor" | "norm", Tensor>,
  _,
  { maxNorm }: { maxNorm: number },
) => {
  k.run("clipFactor", { ...io, maxNorm }, { tasks: 1, work: 1 });
  return true;
};

export const broadcast: WasmOp = (k, io: { x: Tensor; y: Tensor }, { outer, length, inner }) => {
  if (!isF32(io)) return false;
  const { rows, split } = rowTasks(outer * length, inner);
  k.run("repeatRows", { ...io, n: outer * length, length: Math.max(length, 1), inner, rows }, split);
  return true;
};

export const argmax: WasmOp = (k, io: { x: Tensor; y: Tensor }, { outer, length, inner }) => {
  if (inner !== 1 || io.x.dtype !== "f32") return false;
  const { rows, split } = rowTasks(outer, length);
  k.run("argmaxRows", { ...io, n: outer, c: length, rows }, split);
  return true;
};
