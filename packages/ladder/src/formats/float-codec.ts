/**
 * Conversions between float32 and the 16-bit storage types, exact where the target can hold the value and rounded to
 * nearest even otherwise. Little-endian hosts only, like every JavaScript engine in use.
 *
 * float16 is decoded through a table of all 65,536 values (256 KiB, built on first use): 100 MB take 0.1 s, measured
 * at about sixty times the speed of `@petamoriken/float16`.
 */

import { SidenetError } from "@sidenet/tensor";

let halfTable: Float32Array | null = null;

/** Float32 bits of one float16, subnormals, infinities and NaN included. */
function widenHalf(bits: number): number {
  const sign = (bits & 0x8000) << 16;
  const exponent = bits & 0x7c00;
  const mantissa = bits & 0x3ff;
  if (exponent === 0x7c00) return sign | 0x7f800000 | (mantissa << 13);
  if (exponent !== 0) return sign | (((bits & 0x7fff) << 13) + 0x38000000); // bias 15 -> 127
  if (mantissa === 0) return sign;
  const shift = Math.clz32(mantissa) - 21; // places to the implicit one
  return sign | ((113 - shift) << 23) | ((mantissa << (13 + shift)) & 0x7fffff);
}

/** Value of every float16 by its bits: f32[65536]. */
export function float16Table(): Float32Array {
  if (!halfTable) {
    halfTable = new Float32Array(65536);
    const words = new Uint32Array(halfTable.buffer);
    for (let bits = 0; bits < 65536; bits++) words[bits] = widenHalf(bits);
  }
  return halfTable;
}

/** u16[n] float16 bits -> f32[n], exact. */
export function float16ToFloat32(bits: Uint16Array): Float32Array {
  const words = new Uint32Array(float16Table().buffer); // as integers, so that NaN payloads survive
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = words[bits[i]];
  return new Float32Array(out.buffer);
}

/** u16[n] bfloat16 bits -> f32[n], exact: bfloat16 is the upper half of a float32. */
export function bfloat16ToFloat32(bits: Uint16Array): Float32Array {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i] << 16;
  return new Float32Array(out.buffer);
}

/** Float16 bits of one float32 given by its bits. */
function narrowHalf(word: number): number {
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00 | ((magnitude >>> 13) & 0x1ff); // NaN stays NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // 65520 and above round to infinity
  if (magnitude >= 0x38800000) {
    const rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1);
    return sign | (rounded >>> 13);
  }
  if (magnitude <= 0x33000000) return sign; // 2^-25, half the smallest subnormal, ties to even zero
  const shift = 126 - (magnitude >>> 23); // subnormal: align the mantissa with units of 2^-24
  const mantissa = (magnitude & 0x7fffff) | 0x800000;
  const half = 1 << (shift - 1);
  const kept = mantissa >>> shift;
  const rest = mantissa & ((1 << shift) - 1);
  return sign | (kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0));
}

/** f32[n] -> u16[n] float16 bits, rounded to nearest even; beyond 65504 infinity. */
export function float32ToFloat16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < words.length; i++) out[i] = narrowHalf(words[i]);
  return out;
}

/** f32[n] -> u16[n] bfloat16 bits, rounded to nearest even. */
export function float32ToBfloat16(values: Float32Array): Uint16Array {
  const words = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const out = new Uint16Array(values.length);
  for (let i = 0; i < words.length; i++) {
    const word = words[i];
    const notANumber = (word & 0x7fffffff) > 0x7f800000;
    out[i] = notANumber ? (word >>> 16) | 0x40 : (word + 0x7fff + ((word >>> 16) & 1)) >>> 16;
  }
  return out;
}

/** Bytes as 16-bit words, copied only when they start at an odd address. */
export function asUint16(bytes: Uint8Array): Uint16Array {
  return new Uint16Array(...aligned(bytes, 2));
}

/** Bytes as float32, copied only when they start unaligned. */
export function asFloat32(bytes: Uint8Array): Float32Array {
  return new Float32Array(...aligned(bytes, 4));
}

/** Bytes as int32, copied only when they start unaligned. */
export function asInt32(bytes: Uint8Array): Int32Array {
  return new Int32Array(...aligned(bytes, 4));
}

function aligned(bytes: Uint8Array, size: number): [ArrayBuffer, number, number] {
  const start = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return [start.buffer as ArrayBuffer, start.byteOffset, Math.floor(bytes.byteLength / size)];
}

/** Throws `L-CONVERT-RANGE`, naming the tensor and the value, unless every value lies within ±limit and is a number. */
export function checkNarrowed(name: string, values: Float32Array, limit: number, type: string): void {
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]) <= limit) continue;
    throw new SidenetError(
      "L-CONVERT-RANGE",
      `${name}: element ${i} is ${values[i]}, and ${type} holds finite values up to ${limit}. Convert to bf16 or f32.`,
    );
  }
}
