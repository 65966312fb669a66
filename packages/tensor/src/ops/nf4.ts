/**
 * NF4 (QLoRA, appendix E) as bitsandbytes stores it. A quantized weight of n elements, row-major, travels as
 *
 *   codes u8[⌈n/2⌉]        two a byte, the earlier element in the high nibble
 *   table f32[16 or 273]   the levels and, for scales of 8 bits, their map of 256 and their offset (quant-maps.ts)
 *   absmax f32             one per block of 64, which may cross rows; with `scales` one per 256 of those
 *   scales u8              with double quantization: one per block, absmax[b] = map[scales[b]] · absmax[b / 256] + offset
 *
 * The references compute in float32 with Math.fround, step by step: these formats are defined to the bit.
 */
import type { HostArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext, type RowRange } from "../op.ts";
import type { Pick } from "../pick.ts";
import { NF4_MAP_AT, NF4_OFFSET_AT, nf4Table } from "../quant-maps.ts";
import { formatShape, sizeOf } from "../shape.ts";
import type { Dims, TensorSpec } from "../signature.ts";
import type { Tensor } from "../tensor.ts";

const { fround } = Math;

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

export const NF4_BLOCKS: Nf4Blocks = { block: 64, nestedBlock: 256 };

const isPowerOfTwo = (n: number): boolean => Number.isInteger(n) && n > 0 && Number.isInteger(Math.log2(n));

/** Throws `T-ATTR` for block sizes that the kernels, which read 8 codes at a time, cannot take. */
function checkBlocks(op: string, { block, nestedBlock }: Nf4Blocks): void {
  if (isPowerOfTwo(block) && block >= 8 && isPowerOfTwo(nestedBlock) && nestedBlock >= 4) return;
  throw new SidenetError(
    "T-ATTR",
    `${op}: blocks of ${block} and nested blocks of ${nestedBlock}; both are powers of two, from 8 and from 4 on.`,
  );
}

/** Throws `T-SHAPE` or `T-ATTR` unless the operands are those of a weight of `size` elements. */
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

/** The weight, in float32 arithmetic. */
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

/** Codes of values scaled to -1..1: how many middles of neighbouring levels lie strictly below. */
function codeOf(scaled: number, levels: HostArray, first: number, count: number): number {
  let code = 0;
  while (code < count - 1 && scaled > fround(levels[first + code] + levels[first + code + 1]) / 2) code++;
  return code;
}

const magnitude = (values: HostArray, from: number, to: number, offset = 0): number => {
  let largest = 0;
  for (let i = from; i < to; i++) largest = Math.max(largest, Math.abs(fround(values[i] - offset)));
  return largest;
};

/** Windows of `size` elements that start at multiples of `step` and take at most a binding at `bytes` each. */
function windows(k: KernelContext, size: number, bytes: number, step: number): RowRange[] {
  const most = Math.max(step, Math.floor(k.profile.maxBindingBytes / bytes / step) * step);
  const ranges: RowRange[] = [];
  for (let start = 0; start < size; start += most)
    ranges.push({ start, count: Math.min(most, size - start) });
  return ranges;
}

const part = (k: KernelContext, tensor: Tensor, { start, count }: RowRange, per: number): Tensor =>
  k.rows(tensor, tensor.size, { start: start / per, count: Math.ceil(count / per) });

/** The codes of a range, from a byte on where a binding may start, and the element which that is. */
export function codesOf(
  k: KernelContext,
  codes: Tensor,
  { start, count }: RowRange,
): { codes: Tensor; codesAt: number } {
  const step = 2 * k.profile.bindingAlignment;
  const codesAt = Math.floor(start / step) * step;
  return { codes: part(k, codes, { start: codesAt, count: start + count - codesAt }, 2), codesAt };
}

/** Dispatches w = the elements of a range that starts at a multiple of 8. */
export function runDequantize(
  k: KernelContext,
  { codes, table, absmax, scales }: Nf4Operands<Tensor>,
  w: Tensor,
  range: RowRange,
  { block, nestedBlock }: Nf4Blocks,
): void {
  const window = codesOf(k, codes, range);
  k.run("nf4-dequantize/main", {
    bind: { codes: window.codes, table, absmax, scales, w },
    params: {
      at: range.start,
      count: range.count,
      codesAt: window.codesAt,
      block,
      nestedBlock,
      isDouble: scales !== null,
      zero: 0,
    },
    grid: Math.ceil(range.count / 8 / 64),
  });
}

/** Random operands of a weight of `size` elements: any codes, positive scales, some of them zero. */
export function drawNf4(pick: Pick, size: number) {
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

/** Codes and absmax of values whose first is element `at`, a multiple of `block`. */
function quantizeInto(
  { codes, absmax, w, table }: Record<"codes" | "absmax" | "w" | "table", HostArray>,
  { block, at }: { block: number; at: number },
): void {
  for (let first = 0; first < w.length; first += block) {
    const end = Math.min(first + block, w.length);
    const b = (at + first) / block;
    absmax[b] = magnitude(w, first, end);
    const inverse = absmax[b] > 0 ? fround(1 / absmax[b]) : 0;
    for (let i = first; i < end; i++) {
      const code = codeOf(fround(w[i] * inverse), table, 0, NF4_MAP_AT);
      const byte = (at + i) >> 1;
      // The first of a byte brings 7, a zero, for a second that may not come.
      codes[byte] = i % 2 === 0 ? (code << 4) | 7 : (codes[byte] & 0xf0) | code;
    }
  }
}

function runQuantize(
  k: KernelContext,
  { codes, absmax, w, table }: Record<"codes" | "absmax" | "w" | "table", Tensor>,
  { block, at }: { block: number; at: number },
): void {
  // Multiples of 64 blocks: their codes and absmax start where a binding may.
  for (const range of windows(k, w.size, w.dtype === "f16" ? 2 : 4, 64 * block)) {
    const target = { start: at + range.start, count: range.count };
    k.run("nf4-quantize/main", {
      bind: {
        w: part(k, w, range, 1),
        table,
        codes: part(k, codes, target, 2),
        absmax: part(k, absmax, target, block),
      },
      params: { n: range.count, block },
      grid: Math.ceil(range.count / block / 64),
    });
  }
}

const checkLevels = ({ L }: Dims): string | null =>
  L >= NF4_MAP_AT ? null : `the table has ${L} entries, the levels are ${NF4_MAP_AT}`;

const weightValues = (pick: Pick) => ({
  table: () => nf4Table({ double: false }),
  w: (n: number) =>
    Float64Array.from(pick.normals(n, 10 ** pick.int(-2, 4)), (x, i) => (i % 192 < 64 ? 0 : x)),
});

export const nf4Quantize = defineOp({
  name: "nf4Quantize",
  doc: "absmax = max |w| of each block, codes = the levels nearest to w / absmax, two a byte; a tie takes the lower",
  sig: "w[N..] table:f32[L] -> codes:u8[P] absmax:f32[B]",
  attrs: { block: NF4_BLOCKS.block },
  infer: ([w], { block }) => {
    checkBlocks("nf4Quantize", { ...NF4_BLOCKS, block });
    const size = sizeOf(w.shape);
    return {
      outputs: [
        { shape: [Math.ceil(size / 2)], dtype: "u8" },
        { shape: [Math.ceil(size / block)], dtype: "f32" },
      ],
    };
  },
  check: checkLevels,
  reference(io, _, { block }) {
    quantizeInto(io, { block, at: 0 });
  },
  kernel: (k, io, _, { block }) => runQuantize(k, io, { block, at: 0 }),
  draw: (pick) => ({
    dims: { N: pick.shape(2000), L: NF4_MAP_AT },
    attrs: { block: pick.oneOf([64, 64, 8]) },
    values: weightValues(pick),
  }),
  close: { rel: 0 }, // bit for bit
  flops: ({ N }) => 4 * N,
});

export const nf4QuantizePart = defineOp({
  name: "nf4QuantizePart",
  doc: "nf4Quantize of a part of a weight into the codes and absmax of the whole, from element `at` on, in place",
  sig: "codes!:u8[P] absmax!:f32[B] w[N..] table:f32[L] ->",
  attrs: { block: NF4_BLOCKS.block, at: 0 },
  check: ({ P, B, N, L }, { block, at }) => {
    checkBlocks("nf4QuantizePart", { ...NF4_BLOCKS, block });
    // Where codes and absmax of every part start at a binding's alignment.
    if (!(Number.isInteger(at / (64 * block)) && at >= 0)) return `at = ${at} is not a multiple of 64 blocks`;
    if (Math.ceil((at + N) / 2) > P || Math.ceil((at + N) / block) > B)
      return `${N} elements from ${at} on pass the end of codes [${P}] or absmax [${B}]`;
    if (N % block !== 0 && Math.ceil((at + N) / 2) !== P)
      return `a part of ${N} elements that is not the last has to be of whole blocks of ${block}`;
    return checkLevels({ L });
  },
  reference: (io, _, attrs) => quantizeInto(io, attrs),
  kernel: (k, io, _, attrs) => runQuantize(k, io, attrs),
  draw: (pick) => {
    const block = pick.oneOf([64, 64, 8]);
    const N = pick.int(0, 2000);
    const at = 64 * block * pick.int(0, 2);
    const rest = N % block === 0 ? pick.int(0, 100) : 0;
    return {
      dims: { N, P: Math.ceil((at + N) / 2) + rest, B: Math.ceil((at + N) / block) + rest, L: NF4_MAP_AT },
      attrs: { block, at },
      values: { ...weightValues(pick), codes: (n) => pick.ints(n, 0, 255) },
    };
  },
  close: { rel: 0 }, // bit for bit
  flops: ({ N }) => 4 * N,
});

/** Σ in float32, in the order that kernels/nf4-scales.wgsl states. */
function orderedSum(values: HostArray): number {
  const lanes = 32;
  const step = 16;
  const whole = Math.floor(values.length / lanes);
  const sums = Array.from({ length: lanes }, (_, lane) => {
    const levels = [0, 0, 0, 0];
    let i = 0;
    while (i + step <= whole) {
      for (let j = 0; j < step; j++) levels[0] = fround(levels[0] + values[(i + j) * lanes + lane]);
      i += step;
      for (let level = 1; level < levels.length; level++) {
        levels[level] = fround(levels[level] + levels[level - 1]);
        levels[level - 1] = 0;
        if (Math.floor(i / step ** level) % step !== 0) break;
      }
    }
    for (; i < whole; i++) levels[0] = fround(levels[0] + values[i * lanes + lane]);
    return levels.reduce((a, b) => fround(a + b));
  });
  const eights = Math.floor(values.length / 8);
  let total = 0;
  for (let i = eights * 8; i < values.length; i++) total = fround(total + values[i]);
  for (let lane = 0; lane < 8; lane++) {
    let sum = sums[lane];
    for (let e = whole * 4; e < eights; e++) sum = fround(sum + values[e * 8 + lane]);
    for (const other of [8, 16, 24]) sum = fround(sum + sums[lane + other]);
    total = fround(total + sum);
  }
  return total;
}

export const nf4QuantizeScales = defineOp({
  name: "nf4QuantizeScales",
  doc: "double quantization: offset = mean absmax, into the table; absmax - offset to 8 bits, nested = its largest magnitude by block",
  sig: "absmax:f32[B] table!:f32[L] -> scales:u8[B] nested:f32[Q]",
  attrs: { nestedBlock: NF4_BLOCKS.nestedBlock },
  infer: ([absmax], { nestedBlock }) => {
    checkBlocks("nf4QuantizeScales", { ...NF4_BLOCKS, nestedBlock });
    return {
      outputs: [
        { shape: absmax.shape, dtype: "u8" },
        { shape: [Math.ceil(sizeOf(absmax.shape) / nestedBlock)], dtype: "f32" },
      ],
    };
  },
  check: ({ L, B }) =>
    L <= NF4_OFFSET_AT
      ? `the table has ${L} entries, levels, map and offset are ${NF4_OFFSET_AT + 1}`
      : B >= 2 ** 24
        ? `${B} blocks are past 2^24, what a float32 counts to`
        : null,
  reference({ absmax, table, scales, nested }, { B }, { nestedBlock }) {
    if (B === 0) return;
    const offset = fround(orderedSum(absmax) / B);
    table[NF4_OFFSET_AT] = offset;
    for (let q = 0; q < nested.length; q++) {
      const end = Math.min((q + 1) * nestedBlock, B);
      nested[q] = magnitude(absmax, q * nestedBlock, end, offset);
      const inverse = nested[q] > 0 ? fround(1 / nested[q]) : 0;
      for (let i = q * nestedBlock; i < end; i++) {
        scales[i] = codeOf(fround(fround(absmax[i] - offset) * inverse), table, NF4_MAP_AT, 256);
      }
    }
  },
  kernel(k, { absmax, table, scales, nested }, { B }, { nestedBlock }) {
    if (B === 0) return;
    const params = { blocks: B, nestedBlock };
    k.run("nf4-scales/mean", { bind: { absmax, table }, params, grid: 1 });
    k.run("nf4-scales/main", {
      bind: { absmax, table, scales, nested },
      params,
      grid: Math.ceil(B / nestedBlock / 32),
    });
  },
  draw: (pick) => ({
    dims: { B: pick.int(0, pick.oneOf([40, 1200])), L: NF4_OFFSET_AT + 1 },
    attrs: { nestedBlock: pick.oneOf([256, 4]) },
    values: {
      table: () => nf4Table(),
      absmax: (n) => Float64Array.from(pick.normals(n), Math.abs),
    },
  }),
  close: { rel: 0 }, // bit for bit
  flops: ({ B }) => 12 * B,
});

export const nf4Dequantize = defineOp({
  name: "nf4Dequantize",
  doc: "w = levels[code] · absmax of its block, absmax from 8 bits where there are scales: the bytes of bitsandbytes",
  sig: "codes:u8[P..] table:f32[L] absmax:f32[A] scales?:u8[B] -> w:f32[M..]",
  attrs: { shape: [] as readonly number[], ...NF4_BLOCKS },
  infer: ([codes, table, absmax, scales], { shape, ...blocks }) => {
    checkNf4("nf4Dequantize", sizeOf(shape), { codes, table, absmax, scales }, blocks);
    return { outputs: [{ shape, dtype: "f32" }], dims: { M: sizeOf(shape) } };
  },
  reference({ codes, table, absmax, scales, w }, { M }, { shape: _, ...blocks }) {
    w.set(dequantizeNf4({ codes, table, absmax, scales }, M, blocks));
  },
  kernel(k, { codes, table, absmax, scales, w }, { M }, { shape: _, ...blocks }) {
    for (const range of windows(k, M, 4, 64)) {
      runDequantize(k, { codes, table, absmax, scales }, part(k, w, range, 1), range, blocks);
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
