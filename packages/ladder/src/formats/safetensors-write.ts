import { float32ToFloat16, formatShape, SidenetError, sizeOf } from "@sidenet/tensor";
import { float32ToBfloat16 } from "./float-codec.ts";

/** Types of floats in a safetensors file. */
export type FloatType = "F32" | "F16" | "BF16";

/** A tensor to write; floats are rounded for F16 and BF16. */
export type WritableTensor = { readonly shape: readonly number[] } & (
  | { readonly dtype: FloatType; readonly data: Float32Array }
  | { readonly dtype: "I32"; readonly data: Int32Array }
  | { readonly dtype: "U8"; readonly data: Uint8Array }
);

const ELEMENT_BYTES = { F32: 4, I32: 4, F16: 2, BF16: 2, U8: 1 } as const;

/** The header of one tensor. */
export interface TensorHeader {
  readonly name: string;
  readonly dtype: WritableTensor["dtype"];
  readonly shape: readonly number[];
}

/** Consecutive tensors whose bytes are made together, when they are to be written. */
export interface TensorGroup {
  readonly tensors: readonly TensorHeader[];
  /** Their bytes, in order. */
  readonly read: () => Promise<readonly Uint8Array[]>;
}

export const headerBytes = ({ dtype, shape }: TensorHeader): number => ELEMENT_BYTES[dtype] * sizeOf(shape);

/** Stored bytes of values: floats rounded to nearest even for F16 and BF16. */
export function storedBytes({ dtype, data }: Pick<WritableTensor, "dtype" | "data">): Uint8Array {
  const narrow = dtype === "F16" ? float32ToFloat16 : float32ToBfloat16;
  const words = data instanceof Float32Array && dtype !== "F32" ? narrow(data) : data;
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}

function mismatch(name: string, shape: readonly number[], what: string): SidenetError {
  return new SidenetError(
    "L-TENSOR-SHAPE",
    `cannot write "${name}": shape ${formatShape(shape)} does not hold its ${what}, or the name is the reserved __metadata__.`,
  );
}

/** Length and JSON of a header, padded with spaces to a multiple of 8. */
function encodeHeader(
  tensors: readonly TensorHeader[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const header: Record<string, unknown> = Object.create(null);
  if (Object.keys(metadata).length > 0) header.__metadata__ = metadata;
  let end = 0;
  for (const tensor of tensors) {
    const { name, dtype, shape } = tensor;
    const start = end;
    end += headerBytes(tensor);
    header[name] = { dtype, shape, data_offsets: [start, end] };
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const head = new Uint8Array(8 + Math.ceil(json.length / 8) * 8).fill(0x20);
  new DataView(head.buffer).setBigUint64(0, BigInt(head.length - 8), true);
  head.set(json, 8);
  return head;
}

/**
 * A safetensors file as chunks to be written one after the other, without a copy of the data.
 * Tensors are sorted by element size, then name, so every one is aligned to its type, and equal input gives equal bytes.
 * Throws `L-TENSOR-SHAPE` if a shape and its data differ in size.
 */
export function encodeSafetensors(
  tensors: Readonly<Record<string, WritableTensor>>,
  metadata: Readonly<Record<string, string>> = {},
): Uint8Array[] {
  const names = Object.keys(tensors).sort(
    (a, b) => ELEMENT_BYTES[tensors[b].dtype] - ELEMENT_BYTES[tensors[a].dtype] || (a < b ? -1 : 1),
  );
  const chunks: Uint8Array[] = [];
  for (const name of names) {
    const { shape, data } = tensors[name];
    if (sizeOf(shape) !== data.length || name === "__metadata__")
      throw mismatch(name, shape, `${data.length} elements`);
    chunks.push(storedBytes(tensors[name]));
  }
  const headers = names.map((name) => ({ name, ...tensors[name] }));
  return [encodeHeader(headers, metadata), ...chunks];
}

/**
 * A safetensors file with one group of tensors in memory at a time, in the given order; the caller sees to their alignment.
 * Throws `L-TENSOR-SHAPE` when a group has another size than its headers, and what `read` throws.
 */
export async function* streamSafetensors(
  groups: readonly TensorGroup[],
  metadata: Readonly<Record<string, string>>,
): AsyncGenerator<Uint8Array> {
  yield encodeHeader(
    groups.flatMap(({ tensors }) => tensors),
    metadata,
  );
  for (const { tensors, read } of groups) {
    const parts = await read();
    for (const [i, tensor] of tensors.entries()) {
      if (parts[i].length !== headerBytes(tensor) || tensor.name === "__metadata__")
        throw mismatch(tensor.name, tensor.shape, `${parts[i].length} bytes of ${tensor.dtype}`);
      yield parts[i];
    }
  }
}

/** The chunks joined. */
export function concatBytes(chunks: readonly Uint8Array[]): Uint8Array {
  const out = new Uint8Array(chunks.reduce((sum, chunk) => sum + chunk.length, 0));
  let at = 0;
  for (const chunk of chunks) {
    out.set(chunk, at);
    at += chunk.length;
  }
  return out;
}
