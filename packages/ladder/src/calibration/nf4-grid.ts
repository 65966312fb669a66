/** NF4's grid on the host, to the bit as the ops compute it: codes of values, and scales of 8 bits. */
import { dynamicMap, NF4_BLOCKS, NF4_LEVELS } from "@sidenet/tensor";

const { fround } = Math;
const { block: BLOCK, nestedBlock: NESTED } = NF4_BLOCKS;

/** Middles of neighbouring values: a value above one belongs to the upper of the two. */
const middles = (values: ArrayLike<number>): Float64Array =>
  Float64Array.from({ length: values.length - 1 }, (_, i) => fround(values[i] + values[i + 1]) / 2);

const LEVEL_MIDDLES = middles(NF4_LEVELS);
const MAP = dynamicMap(true);
const MAP_MIDDLES = middles(MAP);

/** How many of the middles, 2^n - 1 of them and ascending, lie strictly below a value. */
function codeOf(value: number, ascending: Float64Array): number {
  let code = 0;
  for (let half = (ascending.length + 1) >> 1; half > 0; half >>= 1) {
    if (value > ascending[code + half - 1]) code += half;
  }
  return code;
}

/** The code whose level times the scale is nearest; 7, a zero, where the scale is 0. */
export const levelCode = (value: number, scale: number): number =>
  scale === 0 ? 7 : codeOf(value / scale, LEVEL_MIDDLES);

/** What a code stands for. */
export const levelValue = (code: number, scale: number): number => fround(NF4_LEVELS[code] * scale);

/** Scales of blocks with double quantization: 8 bits each, of the largest among 256, about an offset. */
export class BlockScales {
  /** Largest magnitude of each block. */
  readonly largest: Float32Array;
  readonly scales: Uint8Array;
  readonly nested: Float32Array;
  readonly offset: number;
  /** f32 of each block, as every reader computes it. */
  readonly values: Float32Array;

  /** Range and offset are made for the largest magnitudes of blocks, which the scales are as well until others are chosen. */
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

  /** The code of block b that is read as the value nearest to this. */
  codeOf(b: number, value: number): number {
    const largest = this.nested[Math.floor(b / NESTED)];
    return codeOf(largest === 0 ? 0 : fround(value - this.offset) / largest, MAP_MIDDLES);
  }

  /** What a code of block b is read as. */
  valueOf(b: number, code: number): number {
    return fround(fround(MAP[code] * this.nested[Math.floor(b / NESTED)]) + this.offset);
  }

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

/** Codes two a byte, the earlier in the high nibble; 7, a zero, for a second that is not there. */
export function packCodes(codes: Uint8Array): Uint8Array {
  return Uint8Array.from(
    { length: Math.ceil(codes.length / 2) },
    (_, i) => (codes[2 * i] << 4) | (codes[2 * i + 1] ?? 7),
  );
}
