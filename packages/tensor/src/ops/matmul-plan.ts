/**
 * How a matmul runs on WebGPU: which kernel, over which windows of its operands.
 *
 * An operand larger than one binding is processed in windows of its rows. Windows of rows of y (and of a, except in tn) are
 * independent. Windows of rows of b are columns of y in nt; in nn and tn they are ranges of k, whose results accumulate.
 */
import type { DType } from "../dtype.ts";
import { type KernelCall, type KernelContext, NO_ROWS, type RowRange, type WindowPreference } from "../op.ts";
import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";
import { runToF16 } from "./elementwise-kernels.ts";
import { type F16Rows, toF16Rows } from "./f16-rows.ts";
import {
  type Bindings,
  FORM_CODES,
  type MatmulForm,
  runBlocks,
  runMatrix,
  type Window,
} from "./matmul-blocks.ts";
import { isPanels, operandWindow, type Panels, splitOperand } from "./panels.ts";

export interface MatmulExtents {
  readonly P: number;
  readonly M: number;
  readonly K: number;
  readonly N: number;
  /** y += a·b instead of y = a·b. */
  readonly accumulate?: boolean;
}

interface MatmulOperands {
  readonly a: Tensor;
  /** Panels only if the matmul is not batched. */
  readonly b: Tensor | Panels;
  readonly y: Tensor;
  readonly bias?: Tensor | null;
}

const FEW_COLS = 4; // COLS of matmul-few.wgsl
const TILE = 64; // of matmul-tile.wgsl
const ROWS_COLS = 32; // columns of a block of matmul-rows.wgsl
/** Windows are multiples of 8 elements, so that they keep whole vec4s and f16 texels: kernels for odd extents are several times slower. */
const VECTORS = { multipleOf: 8 };
/** Textures are workspace in addition to their tensors, so large operands are processed in windows. */
const TEXTURE_WINDOWS = {
  a: { maxBytes: 2 ** 25, ...VECTORS },
  b: { maxBytes: 2 ** 24, ...VECTORS },
};
const isMultipleOf4 = (...numbers: number[]): boolean => numbers.every((number) => number % 4 === 0);

/** Whether matmul-rows.wgsl and matmul-block.wgsl can run the window: they read and write vec4s. */
function fitsVectors({ form, m, n, k, aAt, aRow, yAt, yRow }: Window): boolean {
  return isMultipleOf4(n, aAt, aRow, yAt, yRow) && (form === "tn" ? m % 4 === 0 : k % 4 === 0);
}

/**
 * Whether y[M,N] = a·b runs on subgroup matrices: only if the weights are f16, or quantized and can be decoded to f16. A
 * matmul of two f32 operands never does.
 */
export function usesSubgroupMatrices(
  profile: DeviceProfile,
  form: MatmulForm,
  { M, K, N }: { M: number; K: number; N: number },
  weights: DType | "decoded",
): boolean {
  return (
    profile.subgroupMatrices === true &&
    form !== "tn" &&
    (weights === "f16" || weights === "decoded") &&
    M >= tilesOf(profile).subgroupMatrixRows &&
    K >= 16 &&
    K % 8 === 0 && // the kernel reads eight f16 values at a time
    N % (form === "nn" ? 8 : 4) === 0
  );
}

/** Dispatches one window; `f16` is set where it runs on subgroup matrices, with the scales of a's rows. */
function runWindow(
  k: KernelContext,
  bind: Bindings,
  window: Window,
  accumulate: boolean,
  f16: { readonly scales: Tensor | null } | null = null,
): void {
  if (f16) {
    runMatrix(k, bind, f16.scales, window, accumulate);
    return;
  }
  const { form, batches, m, n, k: depth, aAt, aRow, yAt, yRow } = window;
  const common = { n, k: depth, yAt, yRow, accumulate, hasBias: bind.bias !== null };
  const isVectors = fitsVectors(window);
  if (hasEightLanes(k.profile) && isVectors) {
    runRows(k, bind, window, { ...common, batches, m, aAt, aRow });
    return;
  }
  const columnGroups = Math.ceil(n / FEW_COLS);
  const isFew = form === "nt" && batches === 1 && m <= tilesOf(k.profile).fewRows;
  if (isFew && columnGroups <= k.profile.maxWorkgroupsPerAxis) {
    k.run("matmul-few/main", { bind: { ...bind }, params: common, grid: [columnGroups, m, 1] });
    return;
  }
  if (isVectors) {
    runBlocks(k, bind, window, accumulate);
    return;
  }
  k.run("matmul-tile/main", {
    bind: { ...bind },
    params: { ...common, batches, m, aAt, aRow },
    grid: batches * Math.ceil(m / TILE) * Math.ceil(n / TILE),
    consts: { FORM: FORM_CODES[form] },
  });
}

/** Dispatches matmul-rows.wgsl, the kernel for software drivers, which reads a and b from textures. */
function runRows(k: KernelContext, bind: Bindings, window: Window, params: KernelCall["params"]): void {
  const { form, batches, m, n, k: depth } = window;
  using a = k.texture(bind.a);
  using b = k.texture(bind.b);
  const rows = m <= 8 ? 8 : tilesOf(k.profile).rowsBlock;
  const wide = form === "nt" && bind.b.dtype === "f16" && depth % 8 === 0;
  k.run(`matmul-rows/${form}`, {
    bind: { ...bind, a, b },
    params,
    grid: batches * Math.ceil(m / rows) * Math.ceil(n / ROWS_COLS),
    consts: { ROWS: rows, B_WIDE: Number(wide) },
  });
}

const preferences = (k: KernelContext): { a?: WindowPreference; b?: WindowPreference } =>
  hasEightLanes(k.profile) ? TEXTURE_WINDOWS : { a: VECTORS, b: VECTORS };

/** Dispatches y[P,M,N] = a·b (+ bias[N]), in windows where an operand is larger than one binding. */
export function runMatmul(
  k: KernelContext,
  form: MatmulForm,
  { a, b, y, bias = null }: MatmulOperands,
  { P, M, K, N, accumulate = false }: MatmulExtents,
): void {
  if (P === 0 || M === 0 || N === 0) return;
  if (P > 1 && !isPanels(b)) {
    const plain = { form, m: M, n: N, k: K, aAt: 0, aRow: form === "tn" ? M : K, yAt: 0, yRow: N };
    for (const range of k.split(P, [a, b, y], preferences(k).b)) {
      const bind = { a: k.rows(a, P, range), b: k.rows(b, P, range), y: k.rows(y, P, range), bias };
      runWindow(k, bind, { ...plain, batches: range.count }, accumulate);
    }
    return;
  }
  const isOnMatrices = usesSubgroupMatrices(k.profile, form, { M, K, N }, isPanels(b) ? "decoded" : b.dtype);
  using f16 = isOnMatrices ? toF16Rows(k, a, M, K) : null;
  const operands = { a: f16?.a ?? a, b, y, bias, f16 };
  if (form === "nt") runColumnWindows(k, operands, { M, K, N, accumulate });
  else runSumWindows(k, form, operands, { M, K, N, accumulate });
}

interface WindowedOperands extends Required<MatmulOperands> {
  readonly f16: F16Rows | null;
}

/** The scales of a range of a's rows. */
const scalesOf = (k: KernelContext, f16: F16Rows | null, M: number, rows: RowRange) =>
  f16 && { scales: f16.scales && k.rows(f16.scales, M, rows) };

interface Extents {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly accumulate: boolean;
}

/** nt: each window of b's rows gives columns of y. */
function runColumnWindows(
  k: KernelContext,
  { a, b, y, bias, f16 }: WindowedOperands,
  { M, K, N, accumulate }: Extents,
): void {
  for (const columns of splitOperand(k, b, N, [], preferences(k).b)) {
    const window = operandWindow(k, b, N, columns); // outside the inner loop: a panel is decoded once
    for (const rows of k.split(M, [a, y, f16?.scales ?? null], preferences(k).a)) {
      const bind = {
        a: k.rows(a, M, rows),
        b: window,
        y: k.rows(y, M, rows),
        bias, // bound whole: kernels read bias[yAt + n]
      };
      const shape: Window = {
        form: "nt",
        batches: 1,
        m: rows.count,
        n: columns.count,
        k: K,
        aAt: 0,
        aRow: K,
        yAt: columns.start,
        yRow: N,
      };
      runWindow(k, bind, shape, accumulate, scalesOf(k, f16, M, rows));
    }
  }
}

/** nn, tn: each window of b's rows gives a part of the sum over k, added to y; the bias is added with the first. */
function runSumWindows(
  k: KernelContext,
  form: "nn" | "tn",
  { a, b, y, bias, f16 }: WindowedOperands,
  { M, K, N, accumulate }: Extents,
): void {
  const ranges = K === 0 ? [NO_ROWS] : splitOperand(k, b, K, form === "tn" ? [a] : [], preferences(k).b);
  if (ranges.length > 1 && y.dtype === "f16" && !accumulate) {
    // Accumulating in y would round to f16 after each window: accumulate in f32 and round once.
    const sum = k.temp([M, N]);
    runSumWindows(k, form, { a, b, y: sum, bias, f16 }, { M, K, N, accumulate });
    runToF16(k, sum, y);
    return;
  }
  for (const range of ranges) {
    const window = operandWindow(k, b, K, range); // outside the inner loop: a panel is decoded once
    const leading = form === "tn" ? [y] : [a, y, f16?.scales ?? null];
    for (const rows of k.split(M, leading, preferences(k).a)) {
      const bind = {
        a: form === "tn" ? k.rows(a, K, range) : k.rows(a, M, rows),
        b: window,
        y: k.rows(y, M, rows),
        bias: range.start === 0 ? bias : null,
      };
      const shape: Window = {
        form,
        batches: 1,
        m: rows.count,
        n: N,
        k: range.count,
        aAt: form === "tn" ? rows.start : range.start,
        aRow: form === "tn" ? M : K,
        yAt: 0,
        yRow: N,
      };
      runWindow(k, bind, shape, accumulate || range.start > 0, scalesOf(k, f16, M, rows));
    }
  }
}
