import { EPS, elementBytes, type HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext, NOT_NEGATIVE, type RowRange, rangesOf } from "../op.ts";
import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import { formatShape } from "../shape.ts";
import type { TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { referenceLinear, referenceMatmul } from "./matmul.ts";
import { runMatmul, usesSubgroupMatrices } from "./matmul-plan.ts";
import {
  checkNf4,
  codesOf,
  dequantizeNf4,
  drawNf4,
  NF4_BLOCKS,
  type Nf4Blocks,
  type Nf4Operands,
  type Nf4Rows,
  runDequantize,
} from "./nf4.ts";
import type { Panels } from "./panels.ts";

/**
 * Up to this many rows of y a GPU decodes weights inside the matmul; beyond, decoding once into a panel is cheaper. A software driver
 * always uses panels: there decoding costs more than the matmul, and reading the panel costs little.
 */
const FEW_ROWS = 4;
const FEW_COLS = 4; // COLS of nf4-few.wgsl

interface Nf4Attrs extends Nf4Blocks {
  /** Bytes of a panel of dequantized weights: whole rows, at least eight. 0: the best for the device. */
  readonly panelBytes: number;
}

export const DEFAULTS: Nf4Attrs = { ...NF4_BLOCKS, panelBytes: 0 };

/** Which part of a weight a linear layer uses. */
export interface Nf4Part {
  /** [rows, columns] of the weight if a part of it is used; []: all of it is. */
  readonly whole: readonly number[];
  /** The first row and the first column of the part: multiples of 8, and so are its columns and the weight's unless it has all. */
  readonly from: readonly number[];
}

const WHOLE: Nf4Part = { whole: [], from: [] };

export const PANEL_RANGES = { panelBytes: NOT_NEGATIVE };

/**
 * Default bytes of a panel. On a GPU it has to keep all cores busy: 32 MiB in f16; in f32 32 MiB together with the split-K workspace of
 * its matmul, which is at most 8 MiB. On a software driver it should stay in the cache.
 */
function panelBytesFor({ adapterClass }: DeviceProfile, dtype: "f32" | "f16"): number {
  if (adapterClass === "software") return 2 ** 23;
  return dtype === "f16" ? 2 ** 25 : 3 * 2 ** 23;
}

/**
 * The rows of w[O,I] in panels, all decoded into the same workspace. Panels start at multiples of 8 rows. w may be a part of a
 * weight: it begins at element `start`, and its rows are `stride` elements apart.
 */
export function panelsOf(
  k: KernelContext,
  weight: Nf4Operands<Tensor>,
  O: number,
  I: number,
  { panelBytes, ...blocks }: Nf4Attrs,
  dtype: "f32" | "f16",
  { start: first, stride }: Pick<Nf4Rows, "start" | "stride"> = { start: 0, stride: I },
): Panels {
  const maxBytes = Math.min(panelBytes || panelBytesFor(k.profile, dtype), k.profile.maxBindingBytes);
  const eights = Math.max(1, Math.floor(maxBytes / Math.max(8 * elementBytes(dtype) * I, 1)));
  const panels = Math.max(1, Math.ceil(O / (8 * eights)));
  const rows = Math.min(O, 8 * Math.ceil(O / panels / 8)); // about equal panels: a small last one would take as long on a GPU
  const panel = k.temp([rows, I], dtype);
  return {
    rows,
    make({ start, count }) {
      const range = { start: first + start * stride, rows: count, width: I, stride };
      runDequantize(k, weight, panel, range, blocks);
      return panel;
    },
  };
}

/** Ranges of rows of w whose codes fit one binding, including the elements before them down to an aligned offset. */
function codeWindows(k: KernelContext, O: number, I: number): RowRange[] {
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const max = Math.max(1, Math.floor(((maxBindingBytes - 2 * bindingAlignment) * 2) / Math.max(I, 1)));
  return rangesOf(O, max);
}

function runFew(
  k: KernelContext,
  { x, y, bias, weight }: { x: Tensor; y: Tensor; bias: Tensor | null; weight: Nf4Operands<Tensor> },
  { N, I, O }: { N: number; I: number; O: number },
  { block, nestedBlock }: Nf4Blocks,
): void {
  for (const { start, count } of codeWindows(k, O, I)) {
    const { codes, codesAt } = codesOf(k, weight.codes, { start: start * I, count: count * I });
    k.run("nf4-few/main", {
      bind: { x, codes, table: weight.table, absmax: weight.absmax, scales: weight.scales, bias, y },
      params: {
        n: O,
        k: I,
        first: start,
        count,
        codesAt,
        blockBits: Math.log2(block),
        nestedBits: Math.log2(nestedBlock),
        isDouble: weight.scales !== null,
        zero: 0,
        hasBias: bias !== null,
      },
      grid: [Math.ceil(count / FEW_COLS), N, 1],
    });
  }
}

/** Where w[O,I] lies in its weight: its first element, the elements from row to row, and those of the weight. */
function placeOf({ whole, from }: Nf4Part, O: number, I: number) {
  if (whole.length === 0) return { start: 0, stride: I, size: O * I };
  const [rows, columns] = whole;
  const [row, column] = from;
  return { start: row * columns + column, stride: columns, size: rows * columns };
}

/** Throws `T-ATTR` unless w[O,I] is a part of its weight that kernels can decode. */
function checkPart(op: string, { whole, from }: Nf4Part, O: number, I: number): void {
  if (whole.length === 0 && from.length === 0) return;
  const [[rows, columns], [row, column]] = [whole, from];
  const isPair = whole.length === 2 && from.length === 2;
  const isInside = isPair && row >= 0 && column >= 0 && row + O <= rows && column + I <= columns;
  const areEights = (...extents: number[]) => extents.every((extent) => extent % 8 === 0);
  if (isInside && areEights(row) && (I === columns || areEights(column, I, columns))) return;
  throw new SidenetError(
    "T-ATTR",
    `${op}: the part ${formatShape([O, I])} from ${formatShape(from)} on of a weight ${formatShape(whole)}: wanted one inside the ` +
      "weight that begins at multiples of 8, with all columns or a multiple of 8.",
  );
}

/** Throws `T-ATTR` unless an extent of the weight that an attribute gives is valid. */
function checkExtent(op: string, extent: number): void {
  if (Number.isInteger(extent) && extent >= 0) return;
  throw new SidenetError(
    "T-ATTR",
    `${op}: the weight's other extent is ${extent}, wanted a whole number >= 0.`,
  );
}

/** The shape of x with `extent` as the last axis. Throws `T-ATTR` and `T-SHAPE` unless w[O,I] and its tensors fit. */
function outputOf(
  op: string,
  x: TensorSpec,
  extent: number,
  [O, I]: readonly [number, number],
  weight: Nf4Operands<TensorSpec>,
  attrs: Nf4Blocks & Nf4Part,
): TensorSpec {
  checkExtent(op, extent);
  checkPart(op, attrs, O, I);
  checkNf4(op, placeOf(attrs, O, I).size, weight, attrs);
  return { shape: [...x.shape.slice(0, -1), extent], dtype: x.dtype };
}

/** w[O,I] in f32 arithmetic. */
function referenceWeight(
  weight: Nf4Operands<HostArray>,
  O: number,
  I: number,
  attrs: Nf4Blocks & Nf4Part,
): Float64Array {
  const { start, stride, size } = placeOf(attrs, O, I);
  const all = dequantizeNf4(weight, size, attrs);
  const w = new Float64Array(O * I);
  for (let o = 0; o < O; o++) w.set(all.subarray(start + o * stride, start + o * stride + I), o * I);
  return w;
}

function drawLinear(pick: TestRandom) {
  const four = pick.oneOf([4, 4, 1]);
  const extent = (max: number) => four * pick.int(0, Math.floor(max / four));
  const [inner, outer] = pick.oneOf([
    [140, 140],
    [140, 140],
    [500, 40],
    [40, 500],
  ] as const);
  const [N, I, O] = [pick.shape(pick.oneOf([5, 60]), 2), extent(inner), extent(outer)];
  const isPart = pick.chance(0.3);
  const eights = (most: number) => 8 * pick.int(0, most);
  const from = [eights(3), I % 8 === 0 ? eights(3) : 0];
  const whole = [from[0] + O + pick.int(0, 20), from[1] + I + (I % 8 === 0 ? eights(2) : 0)];
  const { attrs, omit, ...drawn } = drawNf4(pick, isPart ? whole[0] * whole[1] : I * O);
  const panelBytes = pick.oneOf([2 ** 23, 2 ** 13, 1]); // one panel, several, panels of eight rows
  return {
    ...drawn,
    dims: { ...drawn.dims, N, I, O },
    attrs: { ...attrs, panelBytes, ...(isPart && { whole, from }) },
    omit: pick.chance(0.5) ? [...omit, "bias"] : omit,
  };
}

export const nf4Linear = defineOp({
  name: "nf4Linear",
  doc: "y = x · wᵀ + bias over a weight in NF4 (nf4Dequantize), of which at most a panel of rows is dequantized at a time; w is all of it, or its part from row and column `from` on, of [rows, columns] `whole`",
  sig: "x[N..,I] codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] bias?[O] -> y[N..,O]",
  attrs: { out: 0, ...DEFAULTS, ...WHOLE },
  ranges: PANEL_RANGES,
  infer: ([x, codes, table, absmax, scales, bias], { out, ...attrs }) => {
    if (bias && bias.shape[0] !== out) {
      throw new SidenetError(
        "T-SHAPE",
        `nf4Linear: bias is ${formatShape(bias.shape)}, the weight has ${out} rows.`,
      );
    }
    return {
      outputs: [
        outputOf(
          "nf4Linear",
          x,
          out,
          [out, x.shape[x.shape.length - 1]],
          { codes, table, absmax, scales },
          attrs,
        ),
      ],
    };
  },
  reference({ x, codes, table, absmax, scales, bias, y }, { N, I, O }, attrs) {
    const w = referenceWeight({ codes, table, absmax, scales }, O, I, attrs);
    referenceLinear({ x, w, bias, y }, { N, I, O });
  },
  kernel(k, { x, codes, table, absmax, scales, bias, y }, { N, I, O }, { out: _, ...attrs }) {
    const weight = { codes, table, absmax, scales };
    const isWhole = attrs.whole.length === 0;
    const isFew = N <= FEW_ROWS && O <= FEW_COLS * k.profile.maxWorkgroupsPerAxis;
    if (isFew && isWhole && !hasEightLanes(k.profile)) {
      runFew(k, { x, y, bias, weight }, { N, I, O }, attrs);
      return;
    }
    const isOnMatrices = usesSubgroupMatrices(k.profile, "nt", { M: N, K: I, N: O }, "decoded");
    const b = panelsOf(k, weight, O, I, attrs, isOnMatrices ? "f16" : "f32", placeOf(attrs, O, I));
    runMatmul(k, "nt", { a: x, b, y, bias }, { P: 1, M: N, K: I, N: O });
  },
  draw: (pick) => {
    const { attrs, ...drawn } = drawLinear(pick);
    return { ...drawn, attrs: { ...attrs, out: drawn.dims.O } };
  },
  // As for linear; weights are at most absmax, here up to 4.
  close: ({ I }) => ({ rel: (8 + I) * EPS, abs: 1e-6 }),
  flops: ({ N, I, O }) => 2 * N * I * O,
});

export const nf4LinearBackwardX = defineOp({
  name: "nf4LinearBackwardX",
  doc: "dx = dy · w for nf4Linear; the weight never gets a gradient",
  sig: "dy[N..,O] codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] -> dx[N..,I]",
  attrs: { in: 0, ...DEFAULTS, ...WHOLE },
  ranges: PANEL_RANGES,
  infer: ([dy, codes, table, absmax, scales], { in: inner, ...attrs }) => ({
    outputs: [
      outputOf(
        "nf4LinearBackwardX",
        dy,
        inner,
        [dy.shape[dy.shape.length - 1], inner],
        { codes, table, absmax, scales },
        attrs,
      ),
    ],
  }),
  reference({ dy, codes, table, absmax, scales, dx }, { N, I, O }, attrs) {
    const w = referenceWeight({ codes, table, absmax, scales }, O, I, attrs);
    referenceMatmul("nn", { a: dy, b: w, y: dx }, { P: 1, M: N, K: O, N: I });
  },
  kernel(k, { dy, codes, table, absmax, scales, dx }, { N, I, O }, { in: _, ...attrs }) {
    const isOnMatrices = usesSubgroupMatrices(k.profile, "nn", { M: N, K: O, N: I }, "decoded");
    const place = placeOf(attrs, O, I);
    const b = panelsOf(k, { codes, table, absmax, scales }, O, I, attrs, isOnMatrices ? "f16" : "f32", place);
    runMatmul(k, "nn", { a: dy, b, y: dx }, { P: 1, M: N, K: O, N: I });
  },
  draw: (pick) => {
    const { attrs, ...drawn } = drawLinear(pick);
    return { ...drawn, attrs: { ...attrs, in: drawn.dims.I } };
  },
  // f16 results are rounded once per panel: O / 8 of them at most, each by half a step of values that grow as √O.
  close: ({ O }) => ({ rel: (8 + O) * EPS, abs: 1e-6 }),
  flops: ({ N, I, O }) => 2 * N * I * O,
});
