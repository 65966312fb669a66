/** Writer of GGUF version 3, little-endian: magic, counts, metadata, tensor table, then aligned data. */
import { formatShape, SidenetError } from "@sidenet/tensor";
import { concatBytes } from "./safetensors-write.ts";

/** A metadata value with the type it has in the file. */
export type GgufField =
  | { readonly type: "u8" | "i8" | "u16" | "i16" | "u32" | "i32" | "f32" | "f64"; readonly value: number }
  | { readonly type: "u64" | "i64"; readonly value: bigint }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "array"; readonly of: GgufField["type"]; readonly value: readonly GgufField[] };

export type GgufFields = Readonly<Record<string, GgufField>>;

/** A row of the tensor table. */
interface GgufTensorHeader {
  readonly name: string;
  /** ggml's number of the type. */
  readonly typeId: number;
  /** Outermost axis first; the file has the reverse order. */
  readonly shape: readonly number[];
  readonly sizeBytes: number;
}

export interface GgufTensorSource extends GgufTensorHeader {
  /** Exactly `sizeBytes` bytes. */
  readonly read: () => Promise<Uint8Array>;
}

interface GgufLayout {
  readonly metadata?: GgufFields;
  readonly tensors?: readonly GgufTensorHeader[];
  readonly version?: number;
  /** Alignment of tensor data; if it is not 32, the metadata must have it as `general.alignment`. */
  readonly alignment?: number;
}

const KIND_IDS: Readonly<Record<GgufField["type"], number>> = {
  u8: 0,
  i8: 1,
  u16: 2,
  i16: 3,
  u32: 4,
  i32: 5,
  f32: 6,
  bool: 7,
  string: 8,
  array: 9,
  u64: 10,
  i64: 11,
  f64: 12,
};

export const ggufStrings = (values: readonly string[]): GgufField => ({
  type: "array",
  of: "string",
  value: values.map((value) => ({ type: "string", value })),
});

export const ggufNumbers = (type: "i32" | "f32" | "u32", values: readonly number[]): GgufField => ({
  type: "array",
  of: type,
  value: values.map((value) => ({ type, value })),
});

function word(bytes: number, write: (view: DataView) => void): Uint8Array {
  const view = new DataView(new ArrayBuffer(bytes));
  write(view);
  return new Uint8Array(view.buffer);
}

const u32 = (value: number) => word(4, (view) => view.setUint32(0, value, true));
const u64 = (value: number | bigint) => word(8, (view) => view.setBigUint64(0, BigInt(value), true));

function text(value: string): Uint8Array[] {
  const bytes = new TextEncoder().encode(value);
  return [u64(bytes.length), bytes];
}

function encodeValue(field: GgufField): Uint8Array[] {
  switch (field.type) {
    case "u8":
    case "i8":
      return [word(1, (view) => view.setInt8(0, field.value))];
    case "u16":
    case "i16":
      return [word(2, (view) => view.setInt16(0, field.value, true))];
    case "u32":
    case "i32":
      return [word(4, (view) => view.setInt32(0, field.value, true))];
    case "f32":
      return [word(4, (view) => view.setFloat32(0, field.value, true))];
    case "f64":
      return [word(8, (view) => view.setFloat64(0, field.value, true))];
    case "u64":
    case "i64":
      return [word(8, (view) => view.setBigInt64(0, field.value, true))];
    case "bool":
      return [Uint8Array.of(field.value ? 1 : 0)];
    case "string":
      return text(field.value);
    case "array":
      return [u32(KIND_IDS[field.of]), u64(field.value.length), ...field.value.flatMap(encodeValue)];
  }
}

const padding = (length: number, alignment: number): Uint8Array =>
  new Uint8Array((alignment - (length % alignment)) % alignment);

/** Everything before the data of the tensors, which follow in the given order, each padded to the alignment. */
export function encodeGgufHeader(layout: GgufLayout): Uint8Array {
  const { metadata = {}, tensors = [], version = 3, alignment = 32 } = layout;
  const fields = Object.entries(metadata);
  const start = [new TextEncoder().encode("GGUF"), u32(version), u64(tensors.length), u64(fields.length)];
  // Not push(...encodeValue(field)): a vocabulary has more tokens than a call can have arguments.
  const chunks = start.concat(
    fields.flatMap(([key, field]) => [text(key), u32(KIND_IDS[field.type]), encodeValue(field)].flat()),
  );
  let offset = 0;
  for (const { name, typeId, shape, sizeBytes } of tensors) {
    const dims = [...shape].reverse().map(u64);
    chunks.push(...text(name), u32(shape.length), ...dims, u32(typeId), u64(offset));
    offset += Math.ceil(sizeBytes / alignment) * alignment;
  }
  const header = concatBytes(chunks);
  return concatBytes([header, padding(header.length, alignment)]);
}

/**
 * A GGUF file as chunks to be written one after the other, one tensor in memory at a time.
 * Throws `L-TENSOR-SHAPE` when a tensor has another size than in the table, and what `read` throws.
 */
export async function* streamGguf(
  metadata: GgufFields,
  tensors: readonly GgufTensorSource[],
): AsyncGenerator<Uint8Array> {
  yield encodeGgufHeader({ metadata, tensors });
  for (const { name, shape, sizeBytes, read } of tensors) {
    const bytes = await read();
    if (bytes.length !== sizeBytes) {
      throw new SidenetError(
        "L-TENSOR-SHAPE",
        `cannot write "${name}" ${formatShape(shape)}: it has ${bytes.length} bytes, its shape and type need ${sizeBytes}.`,
      );
    }
    yield bytes;
    yield padding(bytes.length, 32);
  }
}
