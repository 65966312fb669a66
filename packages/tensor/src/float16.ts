const f32 = new Float32Array(1);
const bits = new Uint32Array(f32.buffer);

/** The IEEE 754 half nearest to x, ties to even, as 16 bits. Values past 65,504 become infinity, as in the standard. */
export function toFloat16Bits(x: number): number {
  f32[0] = x;
  const b = bits[0];
  const sign = (b >>> 16) & 0x8000;
  const magnitude = b & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00; // NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // rounds past the largest half
  if (magnitude >= 0x38800000) {
    // Normal: move the exponent bias from 127 to 15, then round the 13 bits that go.
    const rebased = magnitude - 0x38000000;
    return sign | ((rebased + 0xfff + ((rebased >>> 13) & 1)) >>> 13);
  }
  if (magnitude < 0x33000000) return sign; // below half of the smallest subnormal
  const shift = 126 - (magnitude >>> 23);
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const kept = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  const half = 1 << (shift - 1);
  return sign | (kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0));
}

/** The value of 16 bits of an IEEE 754 half. Exact. */
export function fromFloat16Bits(half: number): number {
  const exponent = (half >>> 10) & 0x1f;
  const mantissa = half & 0x3ff;
  const sign = half & 0x8000 ? -1 : 1;
  if (exponent === 0) return sign * mantissa * 2 ** -24;
  if (exponent === 31) return mantissa === 0 ? sign * Number.POSITIVE_INFINITY : Number.NaN;
  return sign * (1 + mantissa / 1024) * 2 ** (exponent - 15);
}

/** x rounded to the nearest half. */
export const roundToFloat16 = (x: number): number => fromFloat16Bits(toFloat16Bits(x));
