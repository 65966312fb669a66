import { SidenetError } from "./errors.ts";

/** Element types. f16 is a storage type: all arithmetic is f32 (double in the reference). u8 holds masks and codes. */
export type DType = "f32" | "f16" | "i32" | "u32" | "u8";

/** The arrays of `read()` and `device.tensor()`: one entry per element, f16 widened to f32. */
export type HostArray = Float32Array | Float64Array | Int32Array | Uint32Array | Uint8Array;

/** The distance from 1 to the next float32: the unit of tolerances. */
export const EPS = 2 ** -23;

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

/** A zero-filled host array that can hold every value of the type. */
export function hostArray(dtype: DType, count: number): HostArray {
  switch (dtype) {
    case "f32":
    case "f16":
      return new Float32Array(count);
    case "i32":
      return new Int32Array(count);
    case "u32":
      return new Uint32Array(count);
    case "u8":
      return new Uint8Array(count);
  }
}
