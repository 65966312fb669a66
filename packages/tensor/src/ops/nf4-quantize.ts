/**
 * Quantization to NF4 (nf4.ts has the format): values to codes and absmax, and absmax to 8 bits. The references round every step
 * like bitsandbytes, so every device writes the same bytes.
 */
import type { HostArray } from "../dtype.ts";
import { defineOp, type KernelContext } from "../op.ts";
import { NF4_MAP_AT, NF4_OFFSET_AT, nf4Table } from "../quant-maps.ts";
import { sizeOf } from "../shape.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import { part, windows } from "./block-windows.ts";
import { checkBlocks, NF4_BLOCKS } from "./nf4.ts";

const { fround } = Math;

/** The code of a value scaled to -1..1: the number of midpoints between neighbouring levels that are strictly below it. */
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

/** Writes codes and absmax of values from element `at` on, a multiple of `block`. */
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
      // The first code of a byte sets the second to 7, which is zero, in case there is none.
      codes[byte] = i % 2 === 0 ? (code << 4) | 7 : (codes[byte] & 0xf0) | code;
    }
  }
}

function runQuantize(
  k: KernelContext,
  { codes, absmax, w, table }: Record<"codes" | "absmax" | "w" | "table", Tensor>,
  { block, at }: { block: number; at: number },
): void {
  // Multiples of 64 blocks: their codes and absmax start at aligned offsets.
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

const weightValues = (pick: TestRandom) => ({
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
    // Parts whose codes and absmax start at aligned offsets.
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

/** The order of summation of fewer than eight values: PyTorch has four sums then, and adds the remainder to the first. */
const FEW = [0, 4, 5, 6, 1, 2, 3];

/** Σ in f32, in the order that kernels/nf4-scales.wgsl describes. */
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
  if (eights === 0) {
    return FEW.filter((i) => i < values.length).reduce((sum, i) => fround(sum + values[i]), 0);
  }
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
