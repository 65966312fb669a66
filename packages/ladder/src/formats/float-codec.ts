/**
 * Conversions between float32 and bfloat16 (float16 is the tensor package's), and views of a file's bytes. Little-endian hosts
 * only, like every JavaScript engine in use.
 */

import { SidenetError } from "@sidenet/tensor";

/** u16[n] bfloat16 bits -> f32[n], exact: bfloat16 is the upper half of a float32. */
export function bfloat16ToFloat32(bits: Uint16Array): Float32Array {
  const out = new Uint32Array(bits.length);
  for (let i = 0; i < bits.length; i++) out[i] = bits[i] << 16;
  return new Float32Array(out.buffer);
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

/** The largest finite magnitudes of types that hold less than float32; Q8_0 has a scale in float16 and codes up to 127. */
const LARGEST: Readonly<Record<string, number>> = {
  F16: 65504,
  BF16: 3.3895313892515355e38,
  Q8_0: 65504 * 127,
};

/** Throws `L-CONVERT-RANGE`, naming the tensor and the value, unless the type holds every value, which is a number. */
export function checkNarrowed(name: string, values: Float32Array, type: string): void {
  const limit = LARGEST[type];
  if (limit === undefined) return; // F32
  for (let i = 0; i < values.length; i++) {
    if (Math.abs(values[i]) <= limit) continue;
    throw new SidenetError(
      "L-CONVERT-RANGE",
      `${name}: element ${i} is ${values[i]}, and ${type} holds finite values up to ${limit}. Convert to bf16 or f32.`,
    );
  }
}
