/** Encodes float32 values in the types of written GGUF files. */
import { float32ToFloat16, sizeOf } from "@sidenet/tensor";
import { GGUF_TYPE_IDS, GGUF_TYPES } from "./gguf-types.ts";
import { storedBytes } from "./safetensors-write.ts";

/** Types that can be written. */
export type GgufWriteType = "F32" | "F16" | "Q8_0";

export const ggufTypeId = (type: GgufWriteType): number => GGUF_TYPE_IDS.get(type)!;

/** Bytes of a tensor; its rows are whole blocks. */
export function ggufSizeBytes(type: GgufWriteType, shape: readonly number[]): number {
  const { blockElements, blockBytes } = GGUF_TYPES.get(ggufTypeId(type))!;
  return (sizeOf(shape) / blockElements) * blockBytes;
}

/** 34 bytes for 32 elements: d = max |x| / 127 as float16, then round(x / d), halves away from 0, as ggml. */
function encodeQ8(values: Float32Array): Uint8Array {
  const blocks = values.length / 32;
  const out = new Uint8Array(blocks * 34);
  const bytes = new Int8Array(out.buffer);
  const scales = new Float32Array(blocks);
  for (let b = 0; b < blocks; b++) {
    let largest = 0;
    for (let j = 0; j < 32; j++) largest = Math.max(largest, Math.abs(values[b * 32 + j]));
    scales[b] = largest / 127;
  }
  const halves = float32ToFloat16(scales);
  for (let b = 0; b < blocks; b++) {
    const inverse = halves[b] > 0 ? Math.fround(1 / scales[b]) : 0;
    out[b * 34] = halves[b] & 255;
    out[b * 34 + 1] = halves[b] >> 8;
    for (let j = 0; j < 32; j++) {
      const scaled = Math.fround(values[b * 32 + j] * inverse);
      bytes[b * 34 + 2 + j] = Math.trunc(scaled + (scaled < 0 ? -0.5 : 0.5));
    }
  }
  return out;
}

/** The bytes of values in this type; for Q8_0 their number is a multiple of 32. */
export function encodeGguf(type: GgufWriteType, values: Float32Array): Uint8Array {
  return type === "Q8_0" ? encodeQ8(values) : storedBytes({ dtype: type, data: values });
}
