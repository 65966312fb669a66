/** Writes small GGUF files for tests. */
import { concatBytes } from "../src/formats/safetensors-write.ts";

export type Field =
  | { readonly type: "u8" | "i8" | "u16" | "i16" | "u32" | "i32" | "f32" | "f64"; readonly value: number }
  | { readonly type: "u64" | "i64"; readonly value: bigint }
  | { readonly type: "bool"; readonly value: boolean }
  | { readonly type: "string"; readonly value: string }
  | { readonly type: "array"; readonly of: Field["type"]; readonly value: readonly Field[] };

export interface TensorSpec {
  readonly name: string;
  readonly typeId: number;
  /** Outermost first; written in reverse. */
  readonly shape: readonly number[];
  readonly bytes: Uint8Array;
}

export interface GgufSpec {
  readonly version?: number;
  readonly metadata?: Readonly<Record<string, Field>>;
  readonly tensors?: readonly TensorSpec[];
  readonly alignment?: number;
}

const KIND_IDS: Readonly<Record<Field["type"], number>> = {
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

function word(bytes: number, write: (view: DataView) => void): Uint8Array {
  const view = new DataView(new ArrayBuffer(bytes));
  write(view);
  return new Uint8Array(view.buffer);
}

const u32 = (value: number) => word(4, (view) => view.setUint32(0, value, true));
const u64 = (value: number | bigint) => word(8, (view) => view.setBigUint64(0, BigInt(value), true));

function text(value: string): Uint8Array {
  const bytes = new TextEncoder().encode(value);
  return concatBytes([u64(bytes.length), bytes]);
}

function encodeValue(field: Field): Uint8Array {
  switch (field.type) {
    case "u8":
    case "i8":
      return word(1, (view) => view.setInt8(0, field.value));
    case "u16":
    case "i16":
      return word(2, (view) => view.setInt16(0, field.value, true));
    case "u32":
    case "i32":
      return word(4, (view) => view.setInt32(0, field.value, true));
    case "f32":
      return word(4, (view) => view.setFloat32(0, field.value, true));
    case "f64":
      return word(8, (view) => view.setFloat64(0, field.value, true));
    case "u64":
    case "i64":
      return word(8, (view) => view.setBigInt64(0, field.value, true));
    case "bool":
      return Uint8Array.of(field.value ? 1 : 0);
    case "string":
      return text(field.value);
    case "array":
      return concatBytes([u32(KIND_IDS[field.of]), u64(field.value.length), ...field.value.map(encodeValue)]);
  }
}

const padding = (length: number, alignment: number) =>
  new Uint8Array((alignment - (length % alignment)) % alignment);

export function buildGguf({
  version = 3,
  metadata = {},
  tensors = [],
  alignment = 32,
}: GgufSpec): Uint8Array {
  const fields = Object.entries(metadata).map(([key, field]) =>
    concatBytes([text(key), u32(KIND_IDS[field.type]), encodeValue(field)]),
  );
  const infos: Uint8Array[] = [];
  const data: Uint8Array[] = [];
  let offset = 0;
  for (const { name, typeId, shape, bytes } of tensors) {
    const dims = [...shape].reverse().map(u64);
    infos.push(concatBytes([text(name), u32(shape.length), ...dims, u32(typeId), u64(offset)]));
    const pad = padding(bytes.length, alignment);
    data.push(bytes, pad);
    offset += bytes.length + pad.length;
  }
  const counts = [new TextEncoder().encode("GGUF"), u32(version), u64(tensors.length), u64(fields.length)];
  const header = concatBytes([...counts, ...fields, ...infos]);
  return concatBytes([header, padding(header.length, alignment), ...data]);
}

export const strings = (values: readonly string[]): Field => ({
  type: "array",
  of: "string",
  value: values.map((value) => ({ type: "string", value })),
});

export const numbers = (type: "i32" | "f32" | "u32", values: readonly number[]): Field => ({
  type: "array",
  of: type,
  value: values.map((value) => ({ type, value })),
});

export const f32Bytes = (values: ArrayLike<number>): Uint8Array =>
  new Uint8Array(Float32Array.from(values).buffer);

/** Metadata of a one-block llama with vocabulary V, d = 8, two heads of 4, one key-value head. */
export function llamaMetadata(architecture = "llama"): Record<string, Field> {
  const key = (name: string) => `${architecture}.${name}`;
  return {
    "general.architecture": { type: "string", value: architecture },
    [key("block_count")]: { type: "u32", value: 1 },
    [key("context_length")]: { type: "u32", value: 64 },
    [key("embedding_length")]: { type: "u32", value: 8 },
    [key("feed_forward_length")]: { type: "u32", value: 12 },
    [key("attention.head_count")]: { type: "u32", value: 2 },
    [key("attention.head_count_kv")]: { type: "u32", value: 1 },
    [key("attention.layer_norm_rms_epsilon")]: { type: "f32", value: 1e-5 },
    [key("rope.freq_base")]: { type: "f32", value: 100000 },
  };
}

/** F32 tensors of that block: element k of a tensor is k plus 1000 times its place in the list. */
export function llamaTensors(vocabSize = 16): TensorSpec[] {
  const shapes: [string, number[]][] = [
    ["token_embd.weight", [vocabSize, 8]],
    ["blk.0.attn_norm.weight", [8]],
    ["blk.0.attn_q.weight", [8, 8]],
    ["blk.0.attn_k.weight", [4, 8]],
    ["blk.0.attn_v.weight", [4, 8]],
    ["blk.0.attn_output.weight", [8, 8]],
    ["blk.0.ffn_norm.weight", [8]],
    ["blk.0.ffn_gate.weight", [12, 8]],
    ["blk.0.ffn_up.weight", [12, 8]],
    ["blk.0.ffn_down.weight", [8, 12]],
    ["output_norm.weight", [8]],
  ];
  return shapes.map(([name, shape], place) => {
    const count = shape.reduce((product, n) => product * n, 1);
    return {
      name,
      typeId: 0,
      shape,
      bytes: f32Bytes(Array.from({ length: count }, (_, k) => place * 1000 + k)),
    };
  });
}
