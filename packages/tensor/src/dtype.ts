import { SidenetError } from "./errors.ts";

/** Element types. f16 is a storage type: all arithmetic is f32 (double in the reference). u8 holds masks and codes. */
export type DType = "f32" | "f16" | "i32" | "u32" | "u8";

/** The arrays of `read()` and `device.tensor()`: one entry per element, f16 widened to f32. */
export type HostArray = Float32Array | Float64Array | Int32Array | Uint32Array | Uint8Array;

/** The distance from 1 to the next float32: the unit of tolerances. */
export const EPS = 2 ** -23;
export const LARGEST_F32 = 3.4028234663852886e38;
export const LARGEST_F16 = 65504;

const BYTES: Record<DType, number> = { f32: 4, f16: 2, i32: 4, u32: 4, u8: 1 };

/** Whether a type holds floating-point numbers. */
export const isFloat = (dtype: DType): boolean => dtype === "f32" || dtype === "f16";

/**
 * Bytes of `count` elements, padded to the 4-byte words that every device addresses. Throws `T-DTYPE` for an unknown type, and
 * `T-TOO-LARGE`.
 */
export function sizeBytes(dtype: DType, count: number): number {
  const each = BYTES[dtype];
  if (typeof each !== "number") {
    throw new SidenetError("T-DTYPE", `there is no dtype "${dtype}", only ${Object.keys(BYTES).join(", ")}.`);
  }
  const bytes = Math.ceil((count * each) / 4) * 4;
  if (count >= 2 ** 31 || bytes >= 2 ** 32) {
    throw new SidenetError(
      "T-TOO-LARGE",
      `a tensor of ${count} ${dtype} elements (${bytes} bytes) is past what 32-bit kernel addressing reaches ` +
        "(2^31 elements, 2^32 bytes). Split it along its first axis.",
    );
  }
  return bytes;
}

/** Bytes of one element. */
export const elementBytes = (dtype: DType): number => BYTES[dtype];

/** Arrays of elements as devices store them: f16 as its bits. */
const STORED = {
  f32: Float32Array,
  f16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
  u8: Uint8Array,
} as const;

/** A view of `count` elements in a device's memory from byte `offset` on; f16 as 16-bit integers. */
export const storedArray = (
  dtype: DType,
  buffer: ArrayBufferLike,
  offset: number,
  count: number,
): InstanceType<(typeof STORED)[DType]> => new STORED[dtype](buffer as ArrayBuffer, offset, count); // the union of constructors takes no ArrayBufferLike

/** A zero-filled host array that can hold every value of the type. */
export const hostArray = (dtype: DType, count: number): HostArray =>
  dtype === "f16" ? new Float32Array(count) : new STORED[dtype](count);
