/** A `ModelConfig` from GGUF metadata. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { type Family, MAX_LAYERS, type ModelConfig, unsupported } from "../model/config.ts";
import type { Rope, RopeScaling } from "../model/config-rope.ts";
import { ropeFrequencies } from "../model/rope-tables.ts";
import type { GgufFile, GgufValue } from "./gguf.ts";
import { ROPE_FACTORS } from "./gguf-names.ts";
import { dequantize } from "./gguf-quants.ts";

/** Mistral files are written as "llama": the same block. */
const FAMILIES: readonly Family[] = ["llama", "qwen2", "qwen3"];

/** Keys, after the architecture's prefix, that change the result unless they are 0, false or "none". */
const REFUSED = [
  "expert_count",
  "attention.scale",
  "attention.clamp_kqv",
  "attention.max_alibi_bias",
  "attention.attn_logit_softcapping",
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "logit_scale",
  "residual_scale",
  "embedding_scale",
  "use_parallel_residual",
];

/** Typed access to the metadata of one file. */
interface Reader {
  readonly name: string;
  value(key: string): GgufValue | undefined;
  /** Throws `L-CONFIG` if the value is not a number, or if it is missing and there is no fallback. */
  number(key: string, fallback?: number): number;
  id(key: string): number | null;
}

function readerOf(gguf: GgufFile, architecture: string): Reader {
  const name = gguf.source.name;
  const fullKey = (key: string) => (key.startsWith("tokenizer.") ? key : `${architecture}.${key}`);
  const value = (key: string) => gguf.metadata.get(fullKey(key));
  const number = (key: string, fallback?: number): number => {
    const found = value(key) ?? fallback;
    if (typeof found === "number" && Number.isFinite(found)) return found;
    const came = found === undefined ? "is missing" : `is ${JSON.stringify(String(found)).slice(0, 40)}`;
    throw new SidenetError(
      "L-CONFIG",
      `${name}: ${fullKey(key)} ${came}, wanted one number. Convert the model again.`,
    );
  };
  return { name, value, number, id: (key) => (value(key) === undefined ? null : number(key)) };
}

/** The shortest decimal with the same float32: the file holds 9.99999975e-6 where the config said 1e-5. */
function shortestFloat32(value: number): number {
  for (let digits = 1; digits < 9; digits++) {
    const short = Number(value.toPrecision(digits));
    if (Math.fround(short) === Math.fround(value)) return short;
  }
  return value;
}

function positiveInteger(reader: Reader, key: string, fallback?: number): number {
  const value = reader.number(key, fallback);
  const max = key === "block_count" ? MAX_LAYERS : 2 ** 31 - 1;
  if (Number.isInteger(value) && value > 0 && value <= max) return value;
  throw new SidenetError(
    "L-CONFIG",
    `${reader.name}: ${key} is ${value}, wanted a whole number from 1 to ${max}. Convert the model again.`,
  );
}

function headsOf(reader: Reader, hiddenSize: number) {
  const numAttentionHeads = positiveInteger(reader, "attention.head_count");
  const numKeyValueHeads = positiveInteger(reader, "attention.head_count_kv", numAttentionHeads);
  const headDim = positiveInteger(reader, "attention.key_length", hiddenSize / numAttentionHeads);
  const valueDim = reader.number("attention.value_length", headDim);
  const ropeDim = reader.number("rope.dimension_count", headDim);
  if (valueDim !== headDim || ropeDim !== headDim) {
    unsupported(
      reader.name,
      `key_length ${headDim}, value_length ${valueDim} and rope.dimension_count ${ropeDim} must be equal here.`,
    );
  }
  if (numAttentionHeads % numKeyValueHeads !== 0 || headDim % 2 !== 0) {
    throw new SidenetError(
      "L-CONFIG",
      `${reader.name}: ${numAttentionHeads} heads, ${numKeyValueHeads} key-value heads, head size ${headDim}: ` +
        "wanted a multiple of the key-value heads and an even head size.",
    );
  }
  return { numAttentionHeads, numKeyValueHeads, headDim };
}

/** The key under which this project's writer stores the rope parameters; other readers ignore it. */
export const LLAMA3_KEY = "sidenet.rope.llama3";

const llama3Schema = z.strictObject({
  type: z.literal("llama3"),
  factor: z.number().positive(),
  lowFreqFactor: z.number().positive(),
  highFreqFactor: z.number().positive(),
  originalMaxPositionEmbeddings: z.number().positive(),
});

function llama3Key(gguf: GgufFile): RopeScaling[] {
  const text = gguf.metadata.get(LLAMA3_KEY);
  if (typeof text !== "string") return [];
  try {
    return [llama3Schema.parse(JSON.parse(text))];
  } catch (cause) {
    throw new SidenetError(
      "L-CONFIG-ROPE",
      `${gguf.source.name}: ${LLAMA3_KEY} does not hold rope parameters. Convert the model again.`,
      { cause },
    );
  }
}

/**
 * GGUF files of Llama 3 hold the factor of every frequency in place of the rope parameters. The parameters are recovered by
 * comparing these factors with those of the published parameters.
 */
async function llama3From(gguf: GgufFile, theta: number, headDim: number): Promise<RopeScaling | null> {
  const info = gguf.tensors.get(ROPE_FACTORS);
  if (!info) return null;
  const factors = dequantize(info.type.name, await gguf.source.read(info.offset, info.sizeBytes), info.name);
  const factor = factors.at(-1) ?? 1;
  if (factors.every((value) => value === 1)) return null;
  const base = ropeFrequencies({ theta, scaling: null }, headDim);
  const published = [8192, 4096, 2048].map((originalMaxPositionEmbeddings): RopeScaling => {
    return { type: "llama3", factor, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositionEmbeddings };
  });
  for (const scaling of [...llama3Key(gguf), ...published]) {
    const scaled = ropeFrequencies({ theta, scaling }, headDim);
    const same = (slowdown: number, i: number) => Math.abs((slowdown * scaled[i]) / base[i] - 1) <= 1e-5;
    if (factors.length === scaled.length && factors.every(same)) return scaling;
  }
  return unsupported(
    gguf.source.name,
    `${ROPE_FACTORS} does not follow from Llama 3's published rope parameters. Use the safetensors checkpoint.`,
  );
}

/** Linear rope scaling as llama.cpp reads it: a file without a type has linear scaling, and the factor 0 is none. */
function linearFrom(reader: Reader): RopeScaling | null {
  const refuse = (text: string): never => {
    throw new SidenetError("L-CONFIG-ROPE", `${reader.name}: ${text} Choose another model.`);
  };
  const type = reader.value("rope.scaling.type") ?? "linear";
  if (type !== "none" && type !== "linear")
    refuse(`rope scaling "${String(type)}"; none, linear and llama3 are supported.`);
  const attention = reader.number("rope.scaling.attn_factor", 1);
  if (attention !== 1) refuse(`rope.scaling.attn_factor = ${attention} is not supported.`);
  const factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 1));
  return type === "linear" && factor !== 1 && factor !== 0 ? { type, factor } : null;
}

async function ropeOf(gguf: GgufFile, reader: Reader, headDim: number): Promise<Rope> {
  const theta = shortestFloat32(reader.number("rope.freq_base", 10000));
  const linear = linearFrom(reader);
  const llama3 = await llama3From(gguf, theta, headDim);
  if (linear && llama3) unsupported(reader.name, `linear rope scaling together with ${ROPE_FACTORS}.`);
  return { theta, scaling: linear ?? llama3 };
}

function refuseUnsupported(gguf: GgufFile, reader: Reader): void {
  for (const key of REFUSED) {
    const value = reader.value(key);
    if (value !== undefined && value !== 0 && value !== false) {
      unsupported(
        reader.name,
        `${key} = ${String(value)} changes the mathematics in a way that is not supported.`,
      );
    }
  }
  if (reader.value("attention.causal") === false) unsupported(reader.name, "attention is not causal.");
  const shards = gguf.metadata.get("split.count");
  if (typeof shards === "number" && shards > 1) {
    unsupported(reader.name, `it is one of ${shards} parts. Join them with llama.cpp's gguf-split --merge.`);
  }
}

/** The window, and which layers of a Qwen model have it. */
function slidingOf(
  reader: Reader,
  family: Family,
  layers: number,
): Pick<ModelConfig, "slidingWindow" | "slidingLayers"> {
  const window = reader.number("attention.sliding_window", 0);
  if (window <= 0) return { slidingWindow: null, slidingLayers: null };
  const pattern = reader.value("attention.sliding_window_pattern") ?? null;
  if (pattern === null) return { slidingWindow: window, slidingLayers: null };
  const isPattern = family !== "llama" && Array.isArray(pattern) && pattern.length === layers;
  if (!isPattern || !pattern.every((slides) => typeof slides === "boolean") || !pattern.includes(true)) {
    const wanted = `true or false for each of ${layers} layers of a Qwen model`;
    return unsupported(reader.name, `attention.sliding_window_pattern is not what is understood: ${wanted}.`);
  }
  return { slidingWindow: window, slidingLayers: pattern.includes(false) ? pattern : null };
}

/** Throws `L-CONFIG-ARCHITECTURE`, `L-CONFIG`, `L-CONFIG-UNSUPPORTED` or `L-CONFIG-ROPE`. */
export async function modelConfigFromGguf(gguf: GgufFile): Promise<ModelConfig> {
  const architecture = gguf.metadata.get("general.architecture");
  const family = FAMILIES.find((known) => known === architecture);
  if (!family) {
    throw new SidenetError(
      "L-CONFIG-ARCHITECTURE",
      `${gguf.source.name}: architecture ${JSON.stringify(architecture ?? null)}: not one of ${FAMILIES.join(", ")}. ` +
        "Choose a model of these families.",
    );
  }
  const reader = readerOf(gguf, family);
  refuseUnsupported(gguf, reader);
  const embedding = gguf.tensors.get("token_embd.weight");
  const hiddenSize = positiveInteger(reader, "embedding_length");
  const layers = positiveInteger(reader, "block_count");
  const heads = headsOf(reader, hiddenSize);
  const has = (name: string) => gguf.tensors.has(name);
  const eos = ["eos", "eot", "eom"].map((kind) => reader.id(`tokenizer.ggml.${kind}_token_id`));
  return {
    family,
    vocabSize: embedding?.shape[0] ?? positiveInteger(reader, "vocab_size"),
    hiddenSize,
    intermediateSize: positiveInteger(reader, "feed_forward_length"),
    numHiddenLayers: layers,
    ...heads,
    rmsNormEps: shortestFloat32(reader.number("attention.layer_norm_rms_epsilon")),
    rope: await ropeOf(gguf, reader, heads.headDim),
    tieWordEmbeddings: !has("output.weight"),
    attentionBias: { qkv: has("blk.0.attn_q.bias"), o: has("blk.0.attn_output.bias") },
    mlpBias: has("blk.0.ffn_gate.bias"),
    qkNorm: has("blk.0.attn_q_norm.weight"),
    maxPositionEmbeddings: positiveInteger(reader, "context_length"),
    ...slidingOf(reader, family, layers),
    bosTokenId: reader.id("tokenizer.ggml.bos_token_id"),
    eosTokenIds: [...new Set(eos.filter((id) => id !== null))],
    padTokenId: reader.id("tokenizer.ggml.padding_token_id"),
    quantization: null,
  };
}
