/**
 * Quantization to 8 bits with a power-of-two scale per block of 64, like MXINT8 of the OCP Microscaling formats (there per 32): for
 * tensors that are kept for a while and read once, such as the hidden states of a training step.
 */
import { SidenetError } from "../errors.ts";
import { defineOp, type KernelContext, type RowRange } from "../op.ts";
import { formatShape, sizeOf } from "../shape.ts";
import { part, windows } from "./block-windows.ts";

const BLOCK = 64;
/** Blocks below it become zero: their scale would be subnormal. */
const TINY = 2 ** -100;
const LANES = 64;

const blocksOf = (size: number): number => Math.ceil(size / BLOCK);

/** The power of two with 127 · scale >= largest. */
function scaleOf(largest: number): number {
  if (largest < TINY) return 0;
  const scale = 2 ** (Math.floor(Math.log2(largest)) - 6);
  return largest > 127 * scale ? 2 * scale : scale;
}

/** Rounds ties to even, like WGSL. */
function roundEven(x: number): number {
  const below = Math.floor(x);
  const rest = x - below;
  return rest > 0.5 || (rest === 0.5 && below % 2 !== 0) ? below + 1 : below;
}

/** Windows of whole blocks whose codes and scales start at aligned offsets. */
const windowsOf = (k: KernelContext, size: number): RowRange[] =>
  windows(k, size, 4, k.profile.bindingAlignment * BLOCK);

export const quantize8 = defineOp({
  name: "quantize8",
  doc: "codes = 128 + round(x / scale), scales = the power of two with 127 · scale >= max |x| for each block of 64",
  sig: "x:f32[N..] -> codes:u8[N..] scales:f32[B]",
  infer: ([x]) => ({
    outputs: [
      { shape: x.shape, dtype: "u8" },
      { shape: [blocksOf(sizeOf(x.shape))], dtype: "f32" },
    ],
  }),
  reference({ x, codes, scales }) {
    for (let b = 0; b < scales.length; b++) {
      const end = Math.min((b + 1) * BLOCK, x.length);
      let largest = 0;
      for (let i = b * BLOCK; i < end; i++) largest = Math.max(largest, Math.abs(x[i]));
      scales[b] = scaleOf(largest);
      for (let i = b * BLOCK; i < end; i++) {
        codes[i] = 128 + (scales[b] > 0 ? roundEven(x[i] / scales[b]) : 0);
      }
    }
  },
  kernel(k, { x, codes, scales }, { N }) {
    for (const range of windowsOf(k, N)) {
      k.run("int8-blocks/quantize", {
        bind: {
          x: part(k, x, range, 1),
          codes: part(k, codes, range, 1),
          scales: part(k, scales, range, BLOCK),
        },
        params: { n: range.count },
        grid: Math.ceil(range.count / BLOCK / LANES),
      });
    }
  },
  draw: (pick) => ({
    dims: { N: pick.shape(2000) },
    values: {
      x: (n) => Float64Array.from(pick.normals(n, 10 ** pick.int(-3, 4)), (x, i) => (i % 192 < 64 ? 0 : x)),
    },
  }),
  close: { rel: 0 }, // bit for bit
  flops: ({ N }) => 2 * N,
});

export const dequantize8 = defineOp({
  name: "dequantize8",
  doc: "x = (codes - 128) · scale of its block of 64: the inverse of quantize8",
  sig: "codes:u8[N..] scales:f32[B] -> x:f32[N..]",
  infer: ([codes, scales]) => {
    if (sizeOf(scales.shape) !== blocksOf(sizeOf(codes.shape))) {
      throw new SidenetError(
        "T-SHAPE",
        `dequantize8: scales are ${formatShape(scales.shape)}, ${formatShape(codes.shape)} codes in blocks of ${BLOCK} ` +
          `want [${blocksOf(sizeOf(codes.shape))}]. Do the two belong together?`,
      );
    }
    return { outputs: [{ shape: codes.shape, dtype: "f32" }] };
  },
  reference({ codes, scales, x }) {
    for (let i = 0; i < x.length; i++) x[i] = (codes[i] - 128) * scales[Math.floor(i / BLOCK)];
  },
  kernel(k, { codes, scales, x }, { N }) {
    for (const range of windowsOf(k, N)) {
      k.run("int8-blocks/dequantize", {
        bind: {
          codesIn: part(k, codes, range, 1),
          scalesIn: part(k, scales, range, BLOCK),
          values: part(k, x, range, 1),
        },
        params: { n: range.count },
        grid: Math.ceil(range.count / 4 / LANES),
      });
    }
  },
  draw: (pick) => {
    const N = pick.shape(2000);
    return {
      dims: { N, B: blocksOf(sizeOf(N)) },
      values: {
        codes: (n) => pick.ints(n, 0, 255),
        scales: (n) => Float64Array.from({ length: n }, () => 2 ** pick.int(-20, 10)),
      },
    };
  },
  close: { rel: 0 }, // a product with a power of two
  flops: ({ N }) => 2 * N,
});
