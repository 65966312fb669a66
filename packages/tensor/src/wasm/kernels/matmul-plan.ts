/**
 * How a matmul is run: the windows in which its operands are packed, and the blocks of its result.
 *
 *     for batches that fit the workspace:
 *       for window of WINDOW_STEPS of k:
 *         for window of rows of a: pack it
 *           for window of columns of b: pack it; matmulBlocks adds a·b to y
 *
 * With one or two rows of a (decoding a token), b is read once and nothing is packed (matmul-few.ts).
 */
import { elementBytes } from "../../dtype.ts";
import { rangesOf } from "../../op.ts";
import type { MatmulForm } from "../../ops/matmul-blocks.ts";
import type { MatmulExtents } from "../../ops/matmul-plan.ts";
import type { Nf4Blocks, Nf4Operands } from "../../ops/nf4.ts";
import type { Nf4Part } from "../../ops/nf4-linear.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext } from "../context.ts";
import { overRows } from "./f16-windows.ts";
import { PANEL_COLS } from "./library.ts";
import { PACK_STEPS } from "./tasks.ts";

/** Steps of k in one window. Windows are summed one after the other, so rounding depends on this; it must not depend on threads. */
const WINDOW_STEPS = 2048;
/** Bytes of each packed operand of a window. */
const PACKED_BYTES = 2 ** 22;
/** Panels of a block: about 96 x 64 elements, whose operands over SUM_STEPS fit the L2 cache. */
const BLOCK_ROWS = 16;
const BLOCK_COLS = 8;
/** Operations and packed elements per nanosecond of one thread, roughly: short calls stay on one thread. */
const FLOPS_PER_NS = 40;
const PACKED_PER_NS = 2;
/** Up to so many rows of y, the rows of b are not packed: each is read once. */
const FEW_ROWS = 2;
/** Elements of b in a task of such a matmul, and those that a thread takes in a nanosecond. */
const FEW_SIZE = 32768;
const FEW_PER_NS = 3;

/** Elements of f16 activations that are f32 at a time: enough rows that packing the weight for them again costs little. */
export const F16_WINDOW = 2 ** 20;

/** The tensors of a weight in NF4, and the sizes of its blocks as powers of two: arguments of kernels. */
interface Nf4Args extends Nf4Operands<Tensor> {
  readonly blockShift: number;
  readonly nestedShift: number;
}

/** A weight in NF4 as the right operand, or the part of it from a row and a column on; `width` are all of its columns. */
export interface Nf4Right {
  readonly weight: Nf4Args;
  readonly row: number;
  readonly column: number;
  readonly width: number;
}

export const weightOf = (weight: Nf4Operands<Tensor>, { block, nestedBlock }: Nf4Blocks): Nf4Args => ({
  ...weight,
  blockShift: Math.log2(block),
  nestedShift: Math.log2(nestedBlock),
});

/** A weight in NF4, or a part of one (nf4-linear.ts), whose rows have I elements, as the right operand. */
export const rightOf = (
  weight: Nf4Operands<Tensor>,
  I: number,
  blocks: Nf4Blocks,
  { whole: [, width = I], from: [row = 0, column = 0] }: Nf4Part = { whole: [], from: [] },
): Nf4Right => ({ weight: weightOf(weight, blocks), row, column, width });

interface MatmulOperands {
  readonly a: Tensor;
  /** f32, f16, or a weight in NF4, which has no batches. */
  readonly b: Tensor | Nf4Right;
  readonly y: Tensor;
  readonly bias?: Tensor | null;
}

/** Part of a matmul: m rows from m0, n columns from n0 and k steps from k0. */
interface Window {
  readonly m0: number;
  readonly m: number;
  readonly n0: number;
  readonly n: number;
  readonly k0: number;
  readonly k: number;
}

const divide = (count: number, by: number): number => Math.ceil(count / by);

const isNf4 = (b: Tensor | Nf4Right): b is Nf4Right => "weight" in b;
/** Whether b's rows follow each other from the first element of its tensors on, as matmulFewNf4 reads them. */
const startsWhole = (b: Tensor | Nf4Right, K: number): boolean => !isNf4(b) || (b.row === 0 && b.width === K);

/** y[P,M,N] = a·b (+ bias[N]), or y += a·b. */
export function runMatmul(
  k: WasmContext,
  form: MatmulForm,
  operands: MatmulOperands,
  extents: MatmulExtents,
): void {
  const { P, M, K } = extents;
  const isFew = form === "nt" && P === 1 && M <= FEW_ROWS && !extents.accumulate;
  if (isFew && startsWhole(operands.b, K)) {
    runFew(k, operands, extents);
    return;
  }
  k.scope(() => runWindows(k, form, operands, extents));
}

/** y[M,N] = a·b (+ bias[N]), where a and y have the same rows: if they are f16, they go through in windows as f32. */
export function runMatmulRows(
  k: WasmContext,
  form: "nn" | "nt",
  { a, b, y, bias = null }: MatmulOperands,
  { M, K, N }: Omit<MatmulExtents, "P">,
): true {
  overRows(k, M, { inputs: { a }, outputs: { y }, whole: { bias }, window: F16_WINDOW }, (io, { count }) =>
    runMatmul(k, form, { a: io.a!, b, y: io.y!, bias: io.bias }, { P: 1, M: count, K, N }),
  );
  return true;
}

function runWindows(
  k: WasmContext,
  form: MatmulForm,
  operands: MatmulOperands,
  extents: MatmulExtents,
): void {
  const { P, M, K, N } = extents;
  const { panelRows } = k;
  const steps = Math.min(K, WINDOW_STEPS);
  const rows = Math.min(M, Math.floor(PACKED_BYTES / (4 * steps * panelRows)) * panelRows);
  const cols = Math.min(N, Math.floor(PACKED_BYTES / (4 * steps * PANEL_COLS)) * PANEL_COLS);
  const leftSize = divide(rows, panelRows) * panelRows * steps;
  const rightSize = divide(cols, PANEL_COLS) * PANEL_COLS * steps;
  const batches = Math.min(P, Math.floor(PACKED_BYTES / (4 * Math.max(leftSize, rightSize))));
  const left = k.temp([batches * leftSize]);
  const right = k.temp([batches * rightSize]);
  const { bias = null } = operands;
  for (const range of rangesOf(P, batches)) {
    const p = range.count;
    const [a, y] = [k.rows(operands.a, P, range), k.rows(operands.y, P, range)];
    const b = isNf4(operands.b) ? operands.b : k.rows(operands.b, P, range);
    const ofA = { side: "left", byRows: form !== "tn", width: form === "tn" ? M : K, to: left } as const;
    const ofB = { side: "right", byRows: form === "nt", width: form === "nt" ? K : N, to: right } as const;
    for (const { start: k0, count: steps } of rangesOf(K, WINDOW_STEPS)) {
      for (const { start: m0, count: m } of rangesOf(M, rows)) {
        for (const { start: n0, count: n } of rangesOf(N, cols)) {
          const window = { m0, m, n0, n, k0, k: steps };
          if (n0 === 0) pack(k, a, ofA, p, { first: m0, count: m, k0, steps });
          if (isNf4(b)) packNf4(k, form, b, right, window);
          else pack(k, b, ofB, p, { first: n0, count: n, k0, steps });
          multiply(k, { y, bias, left, right }, p, window, extents);
        }
      }
    }
  }
}

/** y[M,N] = a · bᵀ (+ bias) with few rows of a, row by row of b. */
function runFew(k: WasmContext, { a, b, y, bias = null }: MatmulOperands, { M, K, N }: MatmulExtents): void {
  const rows = Math.max(1, Math.floor(FEW_SIZE / K));
  const split = { tasks: divide(N, rows), work: (M * K * N) / FEW_PER_NS };
  const args = { x: a, y, bias, m: M, n: N, k: K, rows };
  if (isNf4(b)) k.run("matmulFewNf4", { ...args, ...b.weight }, split);
  else k.run(b.dtype === "f16" ? "matmulFewF16" : "matmulFewF32", { ...args, w: b }, split);
}

interface Packed {
  readonly side: "left" | "right";
  /** Whether rows of the matrix become columns of the panels. */
  readonly byRows: boolean;
  /** Elements of a row of the matrix. */
  readonly width: number;
  readonly to: Tensor;
}

/** Packs the window of `count` rows (or columns) and `steps` steps of k of each batch of a matrix. */
function pack(
  k: WasmContext,
  matrix: Tensor,
  { side, byRows, width, to }: Packed,
  batches: number,
  { first, count, k0, steps }: Record<"first" | "count" | "k0" | "steps", number>,
): void {
  const bytes = elementBytes(matrix.dtype);
  const panelWidth = side === "left" ? k.panelRows : PANEL_COLS;
  const [panels, parts] = [divide(count, panelWidth), divide(steps, PACK_STEPS)];
  const at = byRows ? first * width + k0 : k0 * width + first;
  const args = {
    src: { tensor: matrix, byte: bytes * at },
    row: bytes * width,
    k: steps,
    dst: to,
    panels,
    parts,
    count,
    srcBatch: (bytes * matrix.size) / batches,
    dstBatch: 4 * panels * panelWidth * steps,
  };
  const by = byRows ? "Rows" : "Columns";
  const kernel =
    side === "left"
      ? (`packLeft${by}` as const)
      : (`packRight${by}${matrix.dtype === "f16" ? "F16" : "F32"}` as const);
  const work = (batches * count * steps) / PACKED_PER_NS;
  k.run(kernel, args, { tasks: batches * (byRows ? panels : parts), work });
}

/** Right panels of a weight in NF4. */
function packNf4(
  k: WasmContext,
  form: MatmulForm,
  { weight, row, column, width }: Nf4Right,
  right: Tensor,
  { n0, n, k0, k: steps }: Window,
): void {
  const work = (n * steps) / PACKED_PER_NS;
  const [ofN, ofK] = form === "nt" ? [row, column] : [column, row];
  const args = { ...weight, n0: n0 + ofN, n, k0: k0 + ofK, k: steps, dst: right, width };
  if (form === "nt") k.run("packNf4Rows", args, { tasks: divide(n, PANEL_COLS), work });
  else k.run("packNf4Columns", args, { tasks: divide(steps, PACK_STEPS), work });
}

function multiply(
  k: WasmContext,
  { y, bias, left, right }: Record<"y" | "left" | "right", Tensor> & { readonly bias: Tensor | null },
  batches: number,
  { m0, m, n0, n, k0, k: steps }: Window,
  { M, N, accumulate = false }: MatmulExtents,
): void {
  const c = { tensor: y, byte: 4 * (m0 * N + n0) };
  const isLater = accumulate || k0 > 0;
  const [downPanels, acrossPanels] = [divide(m, k.panelRows), divide(n, PANEL_COLS)];
  const blocksDown = divide(downPanels, BLOCK_ROWS);
  const blocks = blocksDown * divide(acrossPanels, BLOCK_COLS);
  // Written out rather than spread from parts: V8 copies parts property by property.
  const args = {
    a: left,
    b: right,
    c,
    init: isLater ? c : bias && { tensor: bias, byte: 4 * n0 },
    initRow: isLater ? 4 * N : 0,
    m,
    n,
    k: steps,
    cRow: 4 * N,
    aBatch: 4 * downPanels * k.panelRows * steps,
    bBatch: 4 * acrossPanels * PANEL_COLS * steps,
    cBatch: 4 * M * N,
    initBatch: isLater ? 4 * M * N : 0,
    blockRows: BLOCK_ROWS,
    blockCols: BLOCK_COLS,
    blocksDown,
    blocks,
  };
  k.run("matmulBlocks", args, {
    tasks: batches * blocks,
    work: (2 * batches * m * n * steps) / FLOPS_PER_NS,
  });
}
