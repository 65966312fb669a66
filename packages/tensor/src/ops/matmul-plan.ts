/**
 * How a product is run on WebGPU: in which windows of its operands, and by which kernel.
 *
 * An operand that is larger than one binding goes through in windows of its rows: rows of y (and of a) one after the other,
 * rows of b either as columns of y (nt) or as parts of the sum that accumulate (nn, tn).
 */
import type { DType } from "../dtype.ts";
import { type KernelCall, type KernelContext, type RowRange, rangesOf, type WindowWish } from "../op.ts";
import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";
import { runToHalves } from "./elementwise-kernels.ts";
import { type Halves, halvesOf } from "./half-rows.ts";
import {
  type Bindings,
  FORM_CODES,
  type MatmulForm,
  runBlocks,
  runMatrix,
  type Window,
} from "./matmul-blocks.ts";

export interface MatmulExtents {
  readonly P: number;
  readonly M: number;
  readonly K: number;
  readonly N: number;
  /** y += a·b instead of y = a·b. */
  readonly accumulate?: boolean;
}

/** Rows of an operand b that exist a panel at a time, such as those of a quantized weight. */
export interface Panels {
  /** At most so many rows at once. */
  readonly rows: number;
  /** Writes these rows to memory that holds until the next call. */
  readonly make: (range: RowRange) => Tensor;
}

export interface MatmulOperands {
  readonly a: Tensor;
  /** Panels only in products that are not batched. */
  readonly b: Tensor | Panels;
  readonly y: Tensor;
  readonly bias?: Tensor | null;
}

const FEW_COLS = 4; // COLS of matmul-few.wgsl
const TILE = 64; // of matmul-tile.wgsl
const ROWS_COLS = 32; // columns of a block of matmul-rows.wgsl
/** Windows keep whole vectors, and texels of halves: the kernels for odd extents are several times as slow. */
const VECTORS = { multipleOf: 8 };
/** Textures are workspace in addition to their tensors, so large operands are processed in windows. */
const TEXTURE_WINDOWS = {
  a: { mostBytes: 2 ** 25, ...VECTORS },
  b: { mostBytes: 2 ** 24, ...VECTORS },
};
const isMultipleOf4 = (...numbers: number[]): boolean => numbers.every((number) => number % 4 === 0);

/** What matmul-rows.wgsl and matmul-block.wgsl read and write in vectors of four. */
function fitsVectors({ form, m, n, k, aAt, aRow, yAt, yRow }: Window): boolean {
  return isMultipleOf4(n, aAt, aRow, yAt, yRow) && (form === "tn" ? m % 4 === 0 : k % 4 === 0);
}

/** What a dispatch binds, and how a was halved where the product goes to the subgroup matrices. */
interface WindowBindings extends Bindings {
  readonly halves?: { readonly scales: Tensor | null } | null;
}

/**
 * Whether y[M,N] = a·b goes to the subgroup matrices: where the weights are halves, or are decoded and may as well be. Products
 * of f32 with f32 never do.
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
    isMultipleOf4(K, N)
  );
}

function runWindow(
  k: KernelContext,
  { halves = null, ...bind }: WindowBindings,
  window: Window,
  accumulate: boolean,
): void {
  if (halves) {
    runMatrix(k, { ...bind, ...halves }, window, accumulate);
    return;
  }
  const { form, batches, m, n, k: depth, aAt, aRow, yAt, yRow } = window;
  const common = { n, k: depth, yAt, yRow, accumulate, hasBias: bind.bias !== null };
  const all = { ...common, batches, m, aAt, aRow };
  const isVectors = fitsVectors(window);
  if (hasEightLanes(k.profile) && isVectors) {
    runRows(k, bind, window, all);
    return;
  }
  const columnGroups = Math.ceil(n / FEW_COLS);
  const isFew = form === "nt" && batches === 1 && m <= tilesOf(k.profile).fewRows;
  if (isFew && columnGroups <= k.profile.maxWorkgroupsPerAxis) {
    k.run("matmul-few/main", { bind: { ...bind }, params: common, grid: [columnGroups, m, 1] });
    return;
  }
  if (isVectors && depth > 0) {
    runBlocks(k, bind, window, accumulate);
    return;
  }
  k.run("matmul-tile/main", {
    bind: { ...bind },
    params: all,
    grid: batches * Math.ceil(m / TILE) * Math.ceil(n / TILE),
    consts: { FORM: FORM_CODES[form] },
  });
}

/** The kernel for software drivers, which takes a and b as textures. */
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

const wishes = (k: KernelContext): { a?: WindowWish; b?: WindowWish } =>
  hasEightLanes(k.profile) ? TEXTURE_WINDOWS : { a: VECTORS, b: VECTORS };

const whole = (count: number): RowRange => ({ start: 0, count });

export const isPanels = (b: Tensor | Panels): b is Panels => "make" in b;

/** Windows of b's rows; `others` share them. */
function splitB(
  k: KernelContext,
  b: Tensor | Panels,
  rows: number,
  others: readonly Tensor[] = [],
): RowRange[] {
  return isPanels(b) ? rangesOf(rows, b.rows) : k.split(rows, [...others, b], wishes(k).b);
}

const windowOfB = (k: KernelContext, b: Tensor | Panels, rows: number, range: RowRange): Tensor =>
  isPanels(b) ? b.make(range) : k.rows(b, rows, range);

/** Dispatches y[P,M,N] = a·b (+ bias[N]), in windows of rows where an operand is larger than one binding. */
export function runMatmul(
  k: KernelContext,
  form: MatmulForm,
  { a, b, y, bias = null }: MatmulOperands,
  { P, M, K, N, accumulate = false }: MatmulExtents,
): void {
  if (P === 0 || M === 0 || N === 0) return;
  if (P > 1 && !isPanels(b)) {
    const plain = { form, m: M, n: N, k: K, aAt: 0, aRow: form === "tn" ? M : K, yAt: 0, yRow: N };
    for (const range of k.split(P, [a, b, y], wishes(k).b)) {
      const bind = { a: k.rows(a, P, range), b: k.rows(b, P, range), y: k.rows(y, P, range), bias };
      runWindow(k, bind, { ...plain, batches: range.count }, accumulate);
    }
    return;
  }
  const isOnMatrices = usesSubgroupMatrices(k.profile, form, { M, K, N }, isPanels(b) ? "decoded" : b.dtype);
  const left = isOnMatrices ? halvesOf(k, a, M, K) : null;
  const operands = { a: left?.a ?? a, b, y, bias, halves: left };
  if (form === "nt") runColumnWindows(k, operands, { M, K, N, accumulate });
  else runSumWindows(k, form, operands, { M, K, N, accumulate });
}

interface WindowedOperands extends Required<MatmulOperands> {
  readonly halves: Halves | null;
}

/** The scales of some rows of the left operand. */
const scalesOf = (k: KernelContext, halves: Halves | null, M: number, rows: RowRange) =>
  halves && { scales: halves.scales && k.rows(halves.scales, M, rows) };

interface Extents {
  readonly M: number;
  readonly K: number;
  readonly N: number;
  readonly accumulate: boolean;
}

/** nt: windows of b's rows are columns of y. */
function runColumnWindows(
  k: KernelContext,
  { a, b, y, bias, halves }: WindowedOperands,
  { M, K, N, accumulate }: Extents,
): void {
  for (const columns of splitB(k, b, N)) {
    const window = windowOfB(k, b, N, columns); // once, when it has to be made
    for (const rows of k.split(M, [a, y, halves?.scales ?? null], wishes(k).a)) {
      const bind = {
        a: k.rows(a, M, rows),
        b: window,
        y: k.rows(y, M, rows),
        bias, // all of it: kernels take bias[yAt + n]
        halves: scalesOf(k, halves, M, rows),
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
      runWindow(k, bind, shape, accumulate);
    }
  }
}

/** nn, tn: windows of b's rows are parts of the sum, which accumulate; the bias goes with the first. */
function runSumWindows(
  k: KernelContext,
  form: "nn" | "tn",
  { a, b, y, bias, halves }: WindowedOperands,
  { M, K, N, accumulate }: Extents,
): void {
  const parts = K === 0 ? [whole(0)] : splitB(k, b, K, form === "tn" ? [a] : []);
  if (parts.length > 1 && y.dtype === "f16" && !accumulate) {
    // Each part would round the sum so far to halves: they meet in f32, and are rounded once.
    const sum = k.temp([M, N]);
    runSumWindows(k, form, { a, b, y: sum, bias, halves }, { M, K, N, accumulate });
    runToHalves(k, sum, y);
    return;
  }
  for (const part of parts) {
    const window = windowOfB(k, b, K, part); // once, when it has to be made
    const leading = form === "tn" ? [y] : [a, y, halves?.scales ?? null];
    for (const rows of k.split(M, leading, wishes(k).a)) {
      const bind = {
        a: form === "tn" ? k.rows(a, K, part) : k.rows(a, M, rows),
        b: window,
        y: k.rows(y, M, rows),
        bias: part.start === 0 ? bias : null,
        halves: scalesOf(k, halves, M, rows),
      };
      const shape: Window = {
        form,
        batches: 1,
        m: rows.count,
        n: N,
        k: part.count,
        aAt: form === "tn" ? rows.start : part.start,
        aRow: form === "tn" ? M : K,
        yAt: 0,
        yRow: N,
      };
      runWindow(k, bind, shape, accumulate || part.start > 0);
    }
  }
}
