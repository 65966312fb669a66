/**
 * NF4 (QLoRA, appendix E) as bitsandbytes stores it. A quantized weight of n row-major elements has these parts:
 *
 *   codes u8[⌈n/2⌉]        two per byte, the earlier element in the high nibble
 *   table f32[16 or 273]   the levels and, for 8-bit scales, their map of 256 and offset (quant-maps.ts)
 *   absmax f32             one per block of 64, which may cross rows; with `scales`, one per 256 blocks
 *   scales u8              with double quantization: one per block, absmax[b] = map[scales[b]] · absmax[b / 256] + offset
 *
 * The ops of nf4-quantize.ts write it. The reference rounds every step to f32 with Math.fround, since the result is defined to the bit.
 */
import type { HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext, type RowRange } from "../op.ts";
import { NF4_MAP_AT, NF4_OFFSET_AT, nf4Table } from "../quant-maps.ts";
import { formatShape, sizeOf } from "../shape.ts";
import type { TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { part, windows } from "./block-windows.ts";

const { fround } = Math;

/** Weights of a workgroup of nf4-dequantize.wgsl. */
const DEQUANTIZED = 8 * 4 * 256;

/** How a weight was quantized. */
export interface Nf4Blocks {
  /** Weights that share an absmax. */
  readonly block: number;
  /** Blocks that share a nested absmax, with double quantization. */
  readonly nestedBlock: number;
}

export interface Nf4Operands<T> {
  readonly codes: T;
  readonly table: T;
  readonly absmax: T;
  readonly scales: T | null;
}

/** The block sizes of bitsandbytes: elements per scale, and scales per nested scale. */
export const NF4_BLOCKS: Nf4Blocks = { block: 64, nestedBlock: 256 };

const isPowerOfTwo = (n: number): boolean => Number.isInteger(n) && n > 0 && Number.isInteger(Math.log2(n));

/** Throws `T-ATTR` for block sizes that the kernels cannot handle, which read 8 codes at a time. */
export function checkBlocks(op: string, { block, nestedBlock }: Nf4Blocks): void {
  if (isPowerOfTwo(block) && block >= 8 && isPowerOfTwo(nestedBlock) && nestedBlock >= 4) return;
  throw new SidenetError(
    "T-ATTR",
    `${op}: blocks of ${block} and nested blocks of ${nestedBlock}; both are powers of two, from 8 and from 4 on.`,
  );
}

/** Throws `T-SHAPE` or `T-ATTR` unless the operands fit a weight of `size` elements. */
export function checkNf4(
  op: string,
  size: number,
  { codes, table, absmax, scales }: Nf4Operands<TensorSpec>,
  blocks: Nf4Blocks,
): void {
  checkBlocks(op, blocks);
  if (size >= 2 ** 31) {
    throw new SidenetError("T-TOO-LARGE", `${op}: a weight of ${size} elements is past 2^31. Split it.`);
  }
  const count = Math.ceil(size / blocks.block);
  const wanted: [string, TensorSpec, number][] = [
    ["codes", codes, Math.ceil(size / 2)],
    ["absmax", absmax, scales ? Math.ceil(count / blocks.nestedBlock) : count],
    ["table", table, scales ? NF4_OFFSET_AT + 1 : NF4_MAP_AT],
  ];
  if (scales) wanted.push(["scales", scales, count]);
  for (const [name, { shape }, length] of wanted) {
    if (sizeOf(shape) === length || (name === "table" && sizeOf(shape) > length)) continue;
    throw new SidenetError(
      "T-SHAPE",
      `${op}: ${name} is ${formatShape(shape)}, a weight of ${size} elements in blocks of ${blocks.block} wants ` +
        `[${length}]. Do the tensors belong to one weight?`,
    );
  }
}

/** The dequantized weight, in f32 arithmetic. */
export function dequantizeNf4(
  { codes, table, absmax, scales }: Nf4Operands<HostArray>,
  size: number,
  { block, nestedBlock }: Nf4Blocks,
): Float64Array {
  const w = new Float64Array(size);
  for (let i = 0; i < size; i++) {
    const b = Math.floor(i / block);
    const code = i % 2 === 0 ? codes[i >> 1] >> 4 : codes[i >> 1] & 15;
    const scale = scales
      ? fround(
          fround(table[NF4_MAP_AT + scales[b]] * absmax[Math.floor(b / nestedBlock)]) + table[NF4_OFFSET_AT],
        )
      : absmax[b];
    w[i] = fround(table[code] * scale);
  }
  return w;
}

/** The codes of a range from an aligned offset on, and the element at that offset. */
export function codesOf(
  k: KernelContext,
  codes: Tensor,
  { start, count }: RowRange,
): { codes: Tensor; codesAt: number } {
  const step = 2 * k.profile.bindingAlignment;
  const codesAt = Math.floor(start / step) * step;
  return { codes: part(k, codes, { start: codesAt, count: start + count - codesAt }, 2), codesAt };
}

/** Rows of `width` elements of a weight, `stride` elements apart, from element `start` on. */
export interface Nf4Rows {
  readonly start: number;
  readonly rows: number;
  readonly width: number;
  readonly stride: number;
}

/** Dispatches the dequantization of rows. `start` is a multiple of 8; if rows are apart, so are `width` and `stride`. */
export function runDequantize(
  k: KernelContext,
  { codes, table, absmax, scales }: Nf4Operands<Tensor>,
  w: Tensor,
  { start, rows, width, stride }: Nf4Rows,
  { block, nestedBlock }: Nf4Blocks,
): void {
  const window = codesOf(k, codes, { start, count: (rows - 1) * stride + width });
  const count = rows * width;
  k.run("nf4-dequantize/main", {
    bind: { codes: window.codes, table, absmax, scales, w },
    params: {
      at: start,
      count,
      width,
      stride,
      codesAt: window.codesAt,
      blockBits: Math.log2(block),
      nestedBits: Math.log2(nestedBlock),
      isDouble: scales !== null,
      zero: 0,
    },
    grid: Math.ceil(count / DEQUANTIZED),
    consts: { APART: Number(width !== stride) },
  });
}

/** Draws operands of a weight of `size` elements: any codes, and scales >= 0, some of them zero. */
export function drawNf4(pick: TestRandom, size: number) {
  const blocks = { block: pick.oneOf([64, 64, 8]), nestedBlock: pick.oneOf([256, 4]) };
  const isDouble = pick.chance(0.5);
  const count = Math.ceil(size / blocks.block);
  const positive = (n: number) => Float64Array.from(pick.normals(n), (x) => (x < -1.5 ? 0 : Math.abs(x)));
  return {
    dims: {
      P: Math.ceil(size / 2),
      L: isDouble ? NF4_OFFSET_AT + 1 : NF4_MAP_AT,
      A: isDouble ? Math.ceil(count / blocks.nestedBlock) : count,
      B: count,
    },
    attrs: blocks,
    omit: isDouble ? [] : ["scales"],
    values: {
      codes: (n: number) => pick.ints(n, 0, 255),
      scales: (n: number) => pick.ints(n, 0, 255),
      absmax: positive,
      table: () => nf4Table({ double: isDouble, offset: 0.5 + pick.unit() }),
    },
  };
}

export const nf4Dequantize = defineOp({
  name: "nf4Dequantize",
  doc: "w = levels[code] · absmax of its block, with 8-bit absmax if scales are given: the format of bitsandbytes",
  sig: "codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] -> w:f32[M..]",
  attrs: { shape: [] as readonly number[], ...NF4_BLOCKS },
  infer: ([codes, table, absmax, scales], { shape, ...blocks }) => {
    checkNf4("nf4Dequantize", sizeOf(shape), { codes, table, absmax, scales }, blocks);
    return { outputs: [{ shape, dtype: "f32" }] };
  },
  reference({ codes, table, absmax, scales, w }, { M }, { shape: _, ...blocks }) {
    w.set(dequantizeNf4({ codes, table, absmax, scales }, M, blocks));
  },
  kernel(k, { codes, table, absmax, scales, w }, { M }, { shape: _, ...blocks }) {
    for (const range of windows(k, M, 4, 64)) {
      const { start, count } = range;
      const row = { start, rows: 1, width: count, stride: count };
      runDequantize(k, { codes, table, absmax, scales }, part(k, w, range, 1), row, blocks);
    }
  },
  draw: (pick) => {
    const shape = pick.shape(3000);
    const { attrs, ...drawn } = drawNf4(pick, sizeOf(shape));
    return { ...drawn, attrs: { ...attrs, shape } };
  },
  close: { rel: 0 }, // bit for bit
  flops: ({ M }) => M,
});
