/** Writes small GGUF files for tests. */
import {
  encodeGgufHeader,
  type GgufField as Field,
  ggufNumbers,
  ggufStrings,
} from "../src/formats/gguf-write.ts";
import { concatBytes } from "../src/formats/safetensors-write.ts";

export type { GgufField as Field } from "../src/formats/gguf-write.ts";

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

const padding = (length: number, alignment: number) =>
  new Uint8Array((alignment - (length % alignment)) % alignment);

/** The library's own writer, over whatever types, versions and alignments a test needs. */
export function buildGguf({ version, metadata = {}, tensors = [], alignment = 32 }: GgufSpec): Uint8Array {
  const headers = tensors.map(({ bytes, ...rest }) => ({ ...rest, sizeBytes: bytes.length }));
  const layout = { metadata, tensors: headers, alignment, ...(version === undefined ? {} : { version }) };
  const data = tensors.flatMap(({ bytes }) => [bytes, padding(bytes.length, alignment)]);
  return concatBytes([encodeGgufHeader(layout), ...data]);
}

export { ggufNumbers as numbers, ggufStrings as strings };

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
