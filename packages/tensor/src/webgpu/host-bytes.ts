/** Converts between the bytes of a buffer and host arrays. */
import { type DType, type HostArray, hostArray, storedArray } from "../dtype.ts";
import { float16ToFloat32, toFloat16Bits } from "../float16.ts";

/** The bytes of values in a buffer of that dtype, padded to whole words. */
export function toBytes(values: ArrayLike<number>, dtype: DType): Uint8Array<ArrayBuffer> {
  if (dtype === "f16") {
    const half = new Uint16Array(Math.ceil(values.length / 2) * 2);
    for (let i = 0; i < values.length; i++) half[i] = toFloat16Bits(values[i]);
    return new Uint8Array(half.buffer);
  }
  if (dtype === "u8") {
    const bytes = new Uint8Array(Math.ceil(values.length / 4) * 4);
    bytes.set(values);
    return bytes;
  }
  const same = hostArray(dtype, 0).constructor === values.constructor;
  // Dawn cannot read shared memory: copy it first.
  const shared = same && !((values as HostArray).buffer instanceof ArrayBuffer);
  const array = same && !shared ? (values as Float32Array<ArrayBuffer>) : hostArray(dtype, values.length);
  if (array !== values) array.set(values);
  return new Uint8Array(array.buffer as ArrayBuffer, array.byteOffset, array.byteLength);
}

/** The first `size` values of a buffer's bytes. */
export function fromBytes(bytes: ArrayBuffer, dtype: DType, size: number): HostArray {
  const stored = storedArray(dtype, bytes, 0, size);
  return stored instanceof Uint16Array ? float16ToFloat32(stored) : stored;
}
