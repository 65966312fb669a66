/** Ops that run by kernels over rows. */
import { elementBytes } from "../../dtype.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { overRows } from "./f16-windows.ts";
import { EXP_PER_NS, rowTasks, SIMPLE_PER_NS } from "./work.ts";

interface NormIo {
  readonly x: Tensor;
  readonly gain: Tensor | null;
  /** Of layerNorm, as `mean`. */
  readonly bias?: Tensor | null;
  readonly y: Tensor;
  readonly mean?: Tensor | null;
  readonly rstd: Tensor | null;
}

const norm =
  (kernel: "rmsNorm" | "layerNorm"): WasmOp =>
  (k, { x, gain, bias = null, y, mean = null, rstd }: NormIo, { N, C }, { eps }: { eps: number }) => {
    const operands = { inputs: { x }, outputs: { y, mean, rstd }, whole: { gain, bias } };
    overRows(k, N, operands, (io, { count: n }) => {
      const { rows, split } = rowTasks(n, C);
      k.run(kernel, { ...io, n, c: C, eps, rows }, split);
    });
    return true;
  };

export const rmsNorm = norm("rmsNorm");
export const layerNorm = norm("layerNorm");

interface BackwardXIo {
  readonly dy: Tensor;
  readonly x: Tensor;
  readonly mean?: Tensor;
  readonly rstd: Tensor;
  readonly gain: Tensor | null;
  readonly dx: Tensor;
}

const normBackwardX =
  (kernel: "rmsNormBackwardX" | "layerNormBackwardX"): WasmOp =>
  (k, { dy, x, mean, rstd, gain, dx }: BackwardXIo, { N, C }) => {
    const inputs = { dy, x, mean: mean ?? null, rstd };
    overRows(k, N, { inputs, outputs: { dx }, whole: { gain } }, (io, { count: n }) => {
      const { rows, split } = rowTasks(n, C);
      k.run(kernel, { ...io, n, c: C, rows }, split);
    });
    return true;
  };

export const rmsNormBackwardX = normBackwardX("rmsNormBackwardX");
export const layerNormBackwardX = normBackwardX("layerNormBackwardX");

/** Columns of a task that sums over rows: two cache lines. */
const SUM_COLS = 32;

type BackwardGainIo = Pick<BackwardXIo, "dy" | "x" | "mean" | "rstd"> & { readonly dgain: Tensor };

const normBackwardGain =
  (kernel: "rmsNormBackwardGain" | "layerNormBackwardGain"): WasmOp =>
  (k, { dy, x, mean, rstd, dgain }: BackwardGainIo, { N, C }) => {
    const inputs = { dy, x, mean: mean ?? null, rstd };
    overRows(k, N, { inputs, outputs: {}, whole: { dgain } }, (io, { start, count: n }) => {
      const split = { tasks: Math.ceil(C / SUM_COLS), work: (n * C) / SIMPLE_PER_NS };
      k.run(kernel, { ...io, n, c: C, cols: SUM_COLS, accumulate: start > 0 }, split);
    });
    return true;
  };

export const rmsNormBackwardGain = normBackwardGain("rmsNormBackwardGain");
export const layerNormBackwardGain = normBackwardGain("layerNormBackwardGain");

export const softmax: WasmOp = (
  k,
  { x, mask, y }: { x: Tensor; mask: Tensor | null; y: Tensor },
  { N, C, M },
) => {
  const operands = { inputs: { x }, outputs: { y }, whole: { mask } };
  overRows(k, N, operands, (io, { start: firstRow, count: n }) => {
    const { rows, split } = rowTasks(n, C, EXP_PER_NS);
    const maskRows = mask === null ? 1 : M;
    k.run(mask === null ? "softmax" : "softmaxMasked", { ...io, n, c: C, firstRow, maskRows, rows }, split);
  });
  return true;
};

export const softmaxBackward: WasmOp = (k, { dy, y, dx }: Record<"dy" | "y" | "dx", Tensor>, { N, C }) => {
  overRows(k, N, { inputs: { dy, y }, outputs: { dx } }, (io, { count: n }) => {
    const { rows, split } = rowTasks(n, C);
    k.run("softmaxBackward", { ...io, n, c: C, rows }, split);
  });
  return true;
};

export const rope: WasmOp = (
  k,
  { x, y, cos, sin }: Record<"x" | "cos" | "sin" | "y", Tensor>,
  { B, T, H, D, P },
  { inverse }: { inverse: boolean },
) => {
  overRows(
    k,
    B * T,
    { inputs: { x }, outputs: { y }, whole: { cos, sin } },
    (io, { start: first, count: n }) => {
      const { rows, split } = rowTasks(n, H * D);
      k.run("rope", { ...io, first, n, t: T, h: H, p: P, direction: inverse ? -1 : 1, rows }, split);
    },
  );
  return true;
};

export const embedding: WasmOp = (k, io: Record<"ids" | "table" | "y", Tensor>, { N, V, C }) => {
  const bytes = C * elementBytes(io.table.dtype);
  const { rows, split } = rowTasks(N, C);
  k.run("embedding", { ...io, n: N, v: V, bytes, rows }, split);
  return true;
};

/** A lookup in a table whose rows are those of x. */
export const selectRows: WasmOp = (
  k,
  { x, rows: ids, y }: Record<"x" | "rows" | "y", Tensor>,
  { M, N, C },
) => {
  const { rows, split } = rowTasks(M, C);
  k.run("embedding", { ids, table: x, y, n: M, v: N, bytes: C * elementBytes(x.dtype), rows }, split);
  return true;
};

/** Tasks of the gradient of a table, of which each reads all ids. */
const TABLE_TASKS = 16;

export const embeddingBackward: WasmOp = (
  k,
  io: Record<"dy" | "ids" | "dtable", Tensor>,
  { N, C },
  { rows: n }: { rows: number },
) => {
  if (io.dy.dtype !== "f32") return false;
  const rows = Math.max(1, Math.ceil(n / TABLE_TASKS));
  const split = { tasks: Math.ceil(n / rows), work: ((N + n) * C) / SIMPLE_PER_NS };
  k.run("embeddingBackward", { ...io, tokens: N, n, c: C, rows }, split);
  return true;
};
