/** Sums and extremes, and clipping. */
import { SQUARES_CHUNK } from "../../ops/optimizer.ts";
import type { Dims } from "../../signature.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { overRows, widened } from "./f16-windows.ts";
import { alone, rowTasks, SIMPLE_PER_NS } from "./work.ts";

/** Elements of one partial sum of a reduction to a scalar. */
const SUM_CHUNK = 65536;
/** Columns of a task that sums over rows, and the inner extent from which columns are summed as vectors. */
const SUM_COLS = 64;
const WIDE = 4;

/** y = factor · the sum of all of x, by partial sums of fixed length. */
function runSumOfAll(k: WasmContext, { x, y }: { x: Tensor; y: Tensor }, factor: number): void {
  const parts = Math.ceil(x.size / SUM_CHUNK);
  const partials = k.temp([parts]);
  const chunks = { n: parts, c: SUM_CHUNK, size: x.size, rows: 1, factor: 1 };
  k.run("sumRows", { x, y: partials, ...chunks }, { tasks: parts, work: x.size / SIMPLE_PER_NS });
  k.run("finishSum", { partials, y, n: parts, factor }, alone(parts));
}

function runSum(
  k: WasmContext,
  { x, y }: { x: Tensor; y: Tensor },
  { outer, length, inner }: Dims,
  factor: number,
): boolean {
  if (inner > 1 && inner < WIDE) return false;
  if (outer === 1 && inner === 1 && x.dtype === "f32") {
    runSumOfAll(k, { x, y }, factor);
    return true;
  }
  overRows(k, outer, { inputs: { x }, outputs: { y } }, (io, { count: n }) => {
    if (inner === 1) {
      const { rows, split } = rowTasks(n, length);
      k.run("sumRows", { ...io, n, c: length, size: n * length, factor, rows }, split);
    } else {
      const parts = Math.ceil(inner / SUM_COLS);
      const split = { tasks: n * parts, work: (n * length * inner) / SIMPLE_PER_NS };
      k.run("sumColumns", { ...io, length, inner, factor, cols: SUM_COLS, parts }, split);
    }
  });
  return true;
}

export const sum: WasmOp = (k, io, dims) => runSum(k, io, dims, 1);
export const mean: WasmOp = (k, io, dims) => runSum(k, io, dims, 1 / dims.length);

export const sumSquares: WasmOp = (k, { totals, x }: { totals: Tensor; x: Tensor }, { S, N }) => {
  const tasks = Math.min(S, Math.ceil(N / SQUARES_CHUNK));
  const extents = { n: N, s: S, chunk: SQUARES_CHUNK };
  k.run("sumSquares", { x: widened(k, x), totals, ...extents }, { tasks, work: N / SIMPLE_PER_NS });
  return true;
};

export const clipFactor: WasmOp = (
  k,
  io: Record<"sumSquares" | "factor" | "norm", Tensor>,
  { S },
  { maxNorm }: { maxNorm: number },
) => {
  k.run("clipFactor", { ...io, n: S, maxNorm }, alone(S));
  return true;
};

export const broadcast: WasmOp = (k, { x, y }: { x: Tensor; y: Tensor }, { outer, length, inner }) => {
  overRows(k, outer, { inputs: { x }, outputs: { y } }, (io, { count }) => {
    const n = count * length;
    const { rows, split } = rowTasks(n, inner);
    k.run("repeatRows", { ...io, n, length, inner, rows }, split);
  });
  return true;
};

/** The largest or smallest along the last axis. */
function runExtreme(
  k: WasmContext,
  kernel: "maxRows" | "minRows",
  { x, value, index }: { x: Tensor; value: Tensor | null; index: Tensor | null },
  { outer, length, inner }: Dims,
): boolean {
  if (inner !== 1) return false;
  overRows(k, outer, { inputs: { x }, outputs: { value, index } }, (io, { count: n }) => {
    const { rows, split } = rowTasks(n, length);
    k.run(kernel, { ...io, n, c: length, rows }, split);
  });
  return true;
}

const extreme =
  (kernel: "maxRows" | "minRows"): WasmOp =>
  (k, { x, y, index }: { x: Tensor; y: Tensor; index: Tensor | null }, dims) =>
    runExtreme(k, kernel, { x, value: y, index }, dims);

export const max = extreme("maxRows");
export const min = extreme("minRows");

export const argmax: WasmOp = (k, { x, y }: { x: Tensor; y: Tensor }, dims) =>
  runExtreme(k, "maxRows", { x, value: null, index: y }, dims);
