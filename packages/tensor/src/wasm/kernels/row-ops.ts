/** Ops that run by kernels over rows. */
import { elementBytes } from "../../dtype.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { overRows } from "./half-windows.ts";
import { EXP_PER_NS, rowTasks, SIMPLE_PER_NS } from "./work.ts";

interface NormIo {
  readonly x: Tensor;
  readonly gain: Tensor | null;
  readonly y: Tensor;
  readonly rstd: Tensor | null;
}

export const rmsNorm: WasmOp = (k, { x, gain, y, rstd }: NormIo, { N, C }, { eps }: { eps: number }) => {
  if (C === 0) return false;
  overRows(k, N, { inputs: { x }, outputs: { y, rstd }, whole: { gain } }, (io, { count: n }) => {
    const { rows, split } = rowTasks(n, C);
    k.run("rmsNorm", { ...io, n, c: C, eps, rows }, split);
  });
  return true;
};

type BackwardX = Omit<NormIo, "y"> & { readonly dy: Tensor; readonly dx: Tensor };

export const rmsNormBackwardX: WasmOp = (k, { dy, x, rstd, gain, dx }: BackwardX, { N, C }) => {
  if (C === 0) return false;
  overRows(k, N, { inputs: { dy, x, rstd }, outputs: { dx }, whole: { gain } }, (io, { count: n }) => {
    const { rows, split } = rowTasks(n, C);
    k.run("rmsNormBackwardX", { ...io, n, c: C, rows }, split);
  });
  return true;
};

/** Columns of a task that sums over rows: a cache line's worth of vectors. */
const SUM_COLS = 32;

export const rmsNormBackwardGain: WasmOp = (
  k,
  { dy, x, rstd, dgain }: Record<"dy" | "x" | "rstd" | "dgain", Tensor>,
  { N, C },
) => {
  overRows(k, N, { inputs: { dy, x, rstd }, outputs: {}, whole: { dgain } }, (io, { start, count: n }) => {
    const split = { tasks: Math.ceil(C / SUM_COLS), work: (n * C) / SIMPLE_PER_NS };
    k.run("rmsNormBackwardGain", { ...io, n, c: C, cols: SUM_COLS, accumulate: start > 0 }, split);
  });
  return true;
};

export const softmax: WasmOp = (
  k,
  { x, mask, y }: { x: Tensor; mask: Tensor | null; y: Tensor },
  { N, C },
) => {
  if (mask !== null) return false;
  overRows(k, N, { inputs: { x }, outputs: { y } }, (io, { count: n }) => {
    const { rows, split } = rowTasks(n, C, EXP_PER_NS);
    k.run("softmax", { ...io, n, c: C, rows }, split);
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

/** A lookup too: the rows of x are a table. */
export const selectRows: WasmOp = (
  k,
  { x, rows: ids, y }: Record<"x" | "rows" | "y", Tensor>,
  { M, N, C },
) => {
  const { rows, split } = rowTasks(M, C);
  k.run("embedding", { ids, table: x, y, n: M, v: N, bytes: C * elementBytes(x.dtype), rows }, split);
  return true;
};

/** Tasks of a gradient of a table: each looks at all tokens. */
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
