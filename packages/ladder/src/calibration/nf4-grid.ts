/** NF4 on the host, bit for bit as the ops compute it: codes of values, and double-quantized scales. */
import { dynamicMap, NF4_BLOCKS, NF4_LEVELS } from "@sidenet/tensor";

const { fround } = Math;
const { block: BLOCK, nestedBlock: NESTED } = NF4_BLOCKS;

/** Midpoints of neighbouring values: above a midpoint, the upper value is nearest. */
const midpoints = (values: ArrayLike<number>): Float64Array =>
  Float64Array.from({ length: values.length - 1 }, (_, i) => fround(values[i] + values[i + 1]) / 2);

const LEVEL_MIDPOINTS = midpoints(NF4_LEVELS);
const MAP = dynamicMap(true);
const MAP_MIDPOINTS = midpoints(MAP);

/** How many of 2^n - 1 ascending midpoints lie strictly below a value. */
function codeOf(value: number, ascending: Float64Array): number {
  let code = 0;
  for (let half = (ascending.length + 1) >> 1; half > 0; half >>= 1) {
    if (value > ascending[code + half - 1]) code += half;
  }
  return code;
}

/** The code whose level times the scale is nearest; 7, the code of zero, where the scale is 0. */
export const levelCode = (value: number, scale: number): number =>
  scale === 0 ? 7 : codeOf(value / scale, LEVEL_MIDPOINTS);

/** The value of a code. */
export const levelValue = (code: number, scale: number): number => fround(NF4_LEVELS[code] * scale);

/** Double-quantized scales of blocks: 8 bits each, relative to the largest of 256 scales after an offset was subtracted. */
export class BlockScales {
  /** Largest magnitude of each block. */
  readonly largest: Float32Array;
  readonly scales: Uint8Array;
  readonly nested: Float32Array;
  readonly offset: number;
  /** The dequantized f32 scale of each block. */
  readonly values: Float32Array;

  /** `largest`: the largest magnitude of each block, which determines range and offset and is the initial scale. */
  constructor(largest: Float32Array) {
    this.largest = largest;
    const sum = largest.reduce((a, b) => a + b, 0);
    this.offset = fround(largest.length === 0 ? 0 : sum / largest.length);
    this.nested = new Float32Array(Math.ceil(largest.length / NESTED));
    for (let b = 0; b < largest.length; b++) {
      const q = Math.floor(b / NESTED);
      this.nested[q] = Math.max(this.nested[q], Math.abs(fround(largest[b] - this.offset)));
    }
    this.scales = new Uint8Array(largest.length);
    this.values = new Float32Array(largest.length);
    for (let b = 0; b < largest.length; b++) this.choose(b, this.codeOf(b, largest[b]));
  }

  /** The 8-bit code of block b whose value is nearest. */
  codeOf(b: number, value: number): number {
    const largest = this.nested[Math.floor(b / NESTED)];
    return codeOf(largest === 0 ? 0 : fround(value - this.offset) / largest, MAP_MIDPOINTS);
  }

  /** The scale that an 8-bit code of block b stands for. */
  valueOf(b: number, code: number): number {
    return fround(fround(MAP[code] * this.nested[Math.floor(b / NESTED)]) + this.offset);
  }

  /** Sets the 8-bit code of block b. */
  choose(b: number, code: number): void {
    this.scales[b] = code;
    this.values[b] = this.valueOf(b, code);
  }
}

/** The largest magnitude of each block. */
export function blockMagnitudes(values: Float32Array): Float32Array {
  const largest = new Float32Array(Math.ceil(values.length / BLOCK));
  for (let i = 0; i < values.length; i++) {
    const b = Math.floor(i / BLOCK);
    largest[b] = Math.max(largest[b], Math.abs(values[i]));
  }
  return largest;
}

/** Packs two codes per byte, the earlier in the high nibble; a missing last code is 7, zero. */
export function packCodes(codes: Uint8Array): Uint8Array {
  return Uint8Array.from(
    { length: Math.ceil(codes.length / 2) },
    (_, i) => (codes[2 * i] << 4) | (codes[2 * i + 1] ?? 7),
  );
}
