/** A model as a GGUF file of llama.cpp: metadata from its configuration, tensors under llama.cpp's names. */
import { SidenetError } from "@sidenet/tensor";
import type { ModelTensor } from "../methods/model-tensors.ts";
import type { ModelConfig } from "../model/config.ts";
import { ropeFrequencies } from "../model/rope-tables.ts";
import { checkNarrowed } from "./float-codec.ts";
import { permutedHeads, permuteRows } from "./gguf-checkpoint.ts";
import { LLAMA3_KEY } from "./gguf-config.ts";
import { encodeGguf, type GgufWriteType, ggufSizeBytes, ggufTypeId } from "./gguf-encode.ts";
import { ggufName, ROPE_FACTORS } from "./gguf-names.ts";
import type { GgufField, GgufFields, GgufTensorSource } from "./gguf-write.ts";
import { storedBytes } from "./safetensors-write.ts";

/** `general.file_type`: the type of most tensors. Source: llama.cpp's llama_ftype. */
const FILE_TYPES: Readonly<Record<GgufWriteType, number>> = { F32: 0, F16: 1, Q8_0: 7 };

const u32 = (value: number): GgufField => ({ type: "u32", value });
const f32 = (value: number): GgufField => ({ type: "f32", value });
const string = (value: string): GgufField => ({ type: "string", value });
const flags = (values: readonly boolean[]): GgufField => ({
  type: "array",
  of: "bool",
  value: values.map((value) => ({ type: "bool", value })),
});

/** Mistral is written as "llama": the same block. */
const architectureOf = ({ family }: ModelConfig): string => (family === "mistral" ? "llama" : family);

function ropeFields({ rope: { theta, scaling } }: ModelConfig, key: (name: string) => string): GgufFields {
  const base = { [key("rope.freq_base")]: f32(theta) };
  if (scaling === null) return base;
  if (scaling.type === "linear") {
    return {
      ...base,
      [key("rope.scaling.type")]: string("linear"),
      [key("rope.scaling.factor")]: f32(scaling.factor),
    };
  }
  return { ...base, [LLAMA3_KEY]: string(JSON.stringify(scaling)) };
}

/** The metadata that `modelConfigFromGguf` and llama.cpp read, without that of the tokenizer. */
export function ggufModelFields(config: ModelConfig, name: string, type: GgufWriteType): GgufFields {
  const architecture = architectureOf(config);
  const key = (rest: string) => `${architecture}.${rest}`;
  return {
    "general.architecture": string(architecture),
    "general.type": string("model"),
    "general.name": string(name),
    "general.file_type": u32(FILE_TYPES[type]),
    "general.quantization_version": u32(2),
    [key("vocab_size")]: u32(config.vocabSize),
    [key("context_length")]: u32(config.maxPositionEmbeddings),
    [key("embedding_length")]: u32(config.hiddenSize),
    [key("block_count")]: u32(config.numHiddenLayers),
    [key("feed_forward_length")]: u32(config.intermediateSize),
    [key("attention.head_count")]: u32(config.numAttentionHeads),
    [key("attention.head_count_kv")]: u32(config.numKeyValueHeads),
    [key("attention.key_length")]: u32(config.headDim),
    [key("attention.value_length")]: u32(config.headDim),
    [key("attention.layer_norm_rms_epsilon")]: f32(config.rmsNormEps),
    ...(config.slidingWindow === null
      ? {}
      : { [key("attention.sliding_window")]: u32(config.slidingWindow) }),
    ...(config.slidingLayers && { [key("attention.sliding_window_pattern")]: flags(config.slidingLayers) }),
    [key("rope.dimension_count")]: u32(config.headDim),
    ...ropeFields(config, key),
  };
}

/** Llama 3's rope factor of every frequency, as llama.cpp expects it; null for other models. */
function ropeFactors({ rope, headDim }: ModelConfig): GgufTensorSource | null {
  if (rope.scaling?.type !== "llama3") return null;
  const base = ropeFrequencies({ theta: rope.theta, scaling: null }, headDim);
  const scaled = ropeFrequencies(rope, headDim);
  const factors = Float32Array.from(base, (frequency, i) => frequency / scaled[i]);
  return {
    name: ROPE_FACTORS,
    typeId: ggufTypeId("F32"),
    shape: [factors.length],
    sizeBytes: factors.byteLength,
    read: async () => storedBytes({ dtype: "F32", data: factors }),
  };
}

/** The type of a tensor. Vectors are F32, as in llama.cpp's converter; rows that are not whole blocks of Q8_0 are F16. */
function typeOf({ shape }: ModelTensor, wanted: GgufWriteType): GgufWriteType {
  if (shape.length < 2) return "F32";
  return wanted === "Q8_0" && shape[1] % 32 !== 0 ? "F16" : wanted;
}

/**
 * The tensors of the file, read and encoded one at a time. Throws `L-GGUF-TENSOR` for a tensor that has no name there, and
 * `L-CONVERT-RANGE` while it reads values that the type cannot hold.
 */
export function ggufModelTensors(
  config: ModelConfig,
  tensors: readonly ModelTensor[],
  wanted: GgufWriteType,
): GgufTensorSource[] {
  const sources = tensors.map((tensor): GgufTensorSource => {
    const name = ggufName(tensor.name);
    if (name === null) {
      throw new SidenetError(
        "L-GGUF-TENSOR",
        `"${tensor.name}" has no name in a GGUF file of a ${config.family} model.`,
      );
    }
    const type = typeOf(tensor, wanted);
    const heads = permutedHeads(tensor.name, config);
    const read = async (): Promise<Uint8Array> => {
      const values = await tensor.read();
      checkNarrowed(tensor.name, values, type);
      const bytes = encodeGguf(type, values);
      return heads > 0 ? permuteRows(bytes, heads, config.headDim) : bytes;
    };
    const { shape } = tensor;
    return { name, typeId: ggufTypeId(type), shape, sizeBytes: ggufSizeBytes(type, shape), read };
  });
  const factors = ropeFactors(config);
  return factors ? [factors, ...sources] : sources;
}
