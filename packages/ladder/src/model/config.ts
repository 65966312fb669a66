/** Model configurations from `config.json`. A field that changes the mathematics is either supported or refused by name. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type Rope, ropeFrom } from "./config-rope.ts";

/** Model families. They differ in biases, norms of queries and keys, and sliding windows. */
export type Family = "llama" | "mistral" | "qwen2" | "qwen3";

/** How a checkpoint stores quantized linear weights. */
export type Quantization = { readonly type: "bitsandbytes-nf4"; readonly doubleQuant: boolean };

/** A decoder of the Llama family; letters of methods.md in brackets. */
export interface ModelConfig {
  readonly family: Family;
  /** [V] */
  readonly vocabSize: number;
  /** [d] */
  readonly hiddenSize: number;
  /** [f] */
  readonly intermediateSize: number;
  /** [L] */
  readonly numHiddenLayers: number;
  /** [n_q] */
  readonly numAttentionHeads: number;
  /** [n_kv], a divisor of n_q */
  readonly numKeyValueHeads: number;
  /** [c], even */
  readonly headDim: number;
  readonly rmsNormEps: number;
  readonly rope: Rope;
  /** Whether lm_head is the embedding table. */
  readonly tieWordEmbeddings: boolean;
  readonly attentionBias: { readonly qkv: boolean; readonly o: boolean };
  readonly mlpBias: boolean;
  /** rmsNorm over headDim on q and k before rope. */
  readonly qkNorm: boolean;
  readonly maxPositionEmbeddings: number;
  /** Up to this many tokens full attention equals the model's own; null: at any length. See `contextLimit`. */
  readonly slidingWindow: number | null;
  /** Whether the attention of each layer has that window; null: that of all, or there is none. */
  readonly slidingLayers: readonly boolean[] | null;
  readonly bosTokenId: number | null;
  readonly eosTokenIds: readonly number[];
  readonly padTokenId: number | null;
  /** The quantization of the blocks' linear weights in the checkpoint; null: floats. */
  readonly quantization: Quantization | null;
}

interface FamilyRule {
  readonly architecture: string;
  // Defaults for fields that the file does not have.
  readonly numKeyValueHeads: number | null;
  readonly headDim: number | null;
  readonly maxPositionEmbeddings: number;
  readonly slidingWindow: number | null;
  readonly bosTokenId: number | null;
  readonly eosTokenId: number | null;
}

/** Names and defaults of the configuration classes of transformers 4 and 5. */
export const FAMILIES: Readonly<Record<Family, FamilyRule>> = {
  llama: {
    architecture: "LlamaForCausalLM",
    numKeyValueHeads: null,
    headDim: null,
    maxPositionEmbeddings: 2048,
    slidingWindow: null,
    bosTokenId: 1,
    eosTokenId: 2,
  },
  mistral: {
    architecture: "MistralForCausalLM",
    numKeyValueHeads: 8,
    headDim: null,
    maxPositionEmbeddings: 131072,
    slidingWindow: 4096,
    bosTokenId: 1,
    eosTokenId: 2,
  },
  qwen2: {
    architecture: "Qwen2ForCausalLM",
    numKeyValueHeads: 32,
    headDim: null,
    maxPositionEmbeddings: 32768,
    slidingWindow: 4096,
    bosTokenId: null,
    eosTokenId: null,
  },
  qwen3: {
    architecture: "Qwen3ForCausalLM",
    numKeyValueHeads: 32,
    headDim: 128,
    maxPositionEmbeddings: 32768,
    slidingWindow: 4096,
    bosTokenId: null,
    eosTokenId: null,
  },
};

/** Fields of related models that change the result, with the values that do not. */
const NEUTRAL: Readonly<Record<string, readonly unknown[]>> = {
  attention_multiplier: [],
  residual_multiplier: [1],
  embedding_multiplier: [1],
  logits_scaling: [1],
  logit_scale: [1],
  lm_head_multiplier: [1],
  scale_emb: [1],
  scale_depth: [],
  dim_model_base: [],
  partial_rotary_factor: [1],
  rotary_pct: [1],
  rope_interleaved: [false],
  use_mrope: [false],
  attn_logit_softcapping: [],
  final_logit_softcapping: [],
  query_pre_attn_scalar: [],
  clip_qkv: [],
  num_experts: [0],
  num_local_experts: [0],
  n_routed_experts: [0],
  num_experts_per_tok: [0],
  moe_intermediate_size: [0],
  attention_chunk_size: [],
  no_rope_layers: [],
  no_rope_layer_interval: [],
  use_qk_norm: [false],
  qk_layernorm: [false],
  alibi: [false],
  use_parallel_residual: [false],
  is_causal: [true],
  is_encoder_decoder: [false],
  add_cross_attention: [false],
};

/** More layers than any model has: a limit on what a hostile file can make us allocate. */
export const MAX_LAYERS = 10_000;

const count = z
  .int()
  .positive()
  .max(2 ** 31 - 1);
const tokenId = z.int().nullish();

const rawSchema = z.looseObject({
  vocab_size: count,
  hidden_size: count,
  intermediate_size: count,
  num_hidden_layers: count.max(MAX_LAYERS),
  num_attention_heads: count,
  num_key_value_heads: count.nullish(),
  head_dim: count.nullish(),
  hidden_act: z.string().default("silu"),
  rms_norm_eps: z.number().positive().default(1e-6),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  max_position_embeddings: count.optional(),
  sliding_window: count.nullish(),
  use_sliding_window: z.boolean().default(false),
  max_window_layers: z.int().nonnegative().default(28),
  layer_types: z.array(z.string()).nullish(),
  bos_token_id: tokenId,
  eos_token_id: z.union([z.int(), z.array(z.int())]).nullish(),
  pad_token_id: tokenId,
});

type Raw = z.infer<typeof rawSchema>;

const quantizationSchema = z.looseObject({
  quant_method: z.string().default("bitsandbytes"),
  load_in_4bit: z.boolean().default(false),
  bnb_4bit_quant_type: z.string().default("fp4"),
  bnb_4bit_use_double_quant: z.boolean().default(false),
  bnb_4bit_quant_storage: z.string().default("uint8"),
});

/** Throws `L-CONFIG-UNSUPPORTED`. */
export function unsupported(name: string, text: string): never {
  throw new SidenetError("L-CONFIG-UNSUPPORTED", `${name}: ${text}`);
}

/** Throws `L-CONFIG` where a value has the wrong type. */
const parse = <Schema extends z.ZodType>(schema: Schema, value: unknown, name: string): z.infer<Schema> =>
  checked(schema, value, (why) => {
    return new SidenetError("L-CONFIG", `${name}: ${why}. Is it the config.json of a language model?`);
  });

function familyOf(raw: unknown, name: string): Family {
  const schema = z.looseObject({
    architectures: z.array(z.string()).nullish(),
    model_type: z.string().nullish(),
  });
  const { architectures, model_type } = parse(schema, raw, name);
  const families = Object.keys(FAMILIES) as Family[];
  const byArchitecture = families.find((family) => architectures?.includes(FAMILIES[family].architecture));
  const byType = families.find((family) => family === model_type);
  const family = byArchitecture ?? (architectures?.length ? undefined : byType);
  if (family === undefined || (model_type && byType !== family)) {
    const known = families.map((f) => `${FAMILIES[f].architecture} (${f})`).join(", ");
    throw new SidenetError(
      "L-CONFIG-ARCHITECTURE",
      `${name}: architectures ${JSON.stringify(architectures ?? null)}, model_type ${JSON.stringify(model_type ?? null)}: ` +
        `not one of ${known}. Choose a model of these families.`,
    );
  }
  return family;
}

function refuseUnsupported(raw: Raw, name: string): void {
  for (const [field, neutral] of Object.entries(NEUTRAL)) {
    const value = raw[field] ?? null;
    if (value !== null && !neutral.includes(value)) {
      unsupported(
        name,
        `${field} = ${JSON.stringify(value)} changes the mathematics in a way that is not supported.`,
      );
    }
  }
  if (raw.hidden_act !== "silu" && raw.hidden_act !== "swish") {
    unsupported(name, `hidden_act = "${raw.hidden_act}"; only "silu" is supported.`);
  }
  for (const type of raw.layer_types ?? []) {
    if (type !== "full_attention" && type !== "sliding_attention") {
      unsupported(name, `layer_types holds "${type}"; only full and sliding attention are understood.`);
    }
  }
}

function quantizationOf(raw: Raw, name: string): Quantization | null {
  if (!raw.quantization_config) return null;
  const q = parse(quantizationSchema, raw.quantization_config, `${name}, quantization_config`);
  if (q.quant_method !== "bitsandbytes" || !q.load_in_4bit || q.bnb_4bit_quant_type !== "nf4") {
    const kind = q.load_in_4bit ? `4 bit ${q.bnb_4bit_quant_type}` : "not 4 bit";
    unsupported(
      name,
      `quantization_config is "${q.quant_method}" (${kind}); only bitsandbytes nf4 is understood.`,
    );
  }
  if (q.bnb_4bit_quant_storage !== "uint8") {
    unsupported(name, `bnb_4bit_quant_storage = "${q.bnb_4bit_quant_storage}"; only "uint8" is understood.`);
  }
  return { type: "bitsandbytes-nf4", doubleQuant: q.bnb_4bit_use_double_quant };
}

/** The window, if any layer uses one. Qwen switches it on by `use_sliding_window`, Mistral by giving a number. */
function slidingOf(family: Family, raw: Raw): Pick<ModelConfig, "slidingWindow" | "slidingLayers"> {
  const window = raw.sliding_window === undefined ? FAMILIES[family].slidingWindow : raw.sliding_window;
  const none = { slidingWindow: null, slidingLayers: null };
  if (family === "llama" || window === null) return none;
  if (family === "mistral") return { slidingWindow: window, slidingLayers: null }; // it has no layer_types
  const types = raw.layer_types;
  const layers = Array.from({ length: raw.num_hidden_layers }, (_, i) =>
    types ? types[i] === "sliding_attention" : raw.use_sliding_window && i >= raw.max_window_layers,
  );
  if (!layers.includes(true)) return none;
  return { slidingWindow: window, slidingLayers: layers.includes(false) ? layers : null };
}

function headsOf(family: Family, raw: Raw, name: string) {
  const numAttentionHeads = raw.num_attention_heads;
  const numKeyValueHeads =
    raw.num_key_value_heads === undefined
      ? (FAMILIES[family].numKeyValueHeads ?? numAttentionHeads)
      : (raw.num_key_value_heads ?? numAttentionHeads);
  const headDim = raw.head_dim ?? FAMILIES[family].headDim ?? raw.hidden_size / numAttentionHeads;
  if (numAttentionHeads % numKeyValueHeads !== 0 || !Number.isInteger(headDim / 2)) {
    throw new SidenetError(
      "L-CONFIG",
      `${name}: num_attention_heads = ${numAttentionHeads}, num_key_value_heads = ${numKeyValueHeads}, ` +
        `head_dim = ${headDim}: wanted a multiple of the key-value heads and an even head_dim. Is the file complete?`,
    );
  }
  return { numAttentionHeads, numKeyValueHeads, headDim };
}

const idOr = (id: number | null | undefined, fallback: number | null): number | null => {
  const chosen = id === undefined ? fallback : id;
  return chosen === null || chosen < 0 ? null : chosen; // -1 means "none" in some files
};

/**
 * Reads a parsed `config.json`; `name` appears in error messages.
 * Throws `L-CONFIG` (a wrong type or size), `L-CONFIG-ARCHITECTURE`, `L-CONFIG-UNSUPPORTED` or `L-CONFIG-ROPE`.
 */
export function parseModelConfig(json: unknown, name = "config.json"): ModelConfig {
  const family = familyOf(json, name);
  const raw = parse(rawSchema, json, name);
  refuseUnsupported(raw, name);
  const rule = FAMILIES[family];
  const eos = raw.eos_token_id === undefined ? rule.eosTokenId : raw.eos_token_id;
  return {
    family,
    vocabSize: raw.vocab_size,
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size,
    numHiddenLayers: raw.num_hidden_layers,
    ...headsOf(family, raw, name),
    rmsNormEps: raw.rms_norm_eps,
    rope: ropeFrom(raw, name),
    tieWordEmbeddings: raw.tie_word_embeddings,
    attentionBias: {
      qkv: family === "qwen2" || (family !== "mistral" && raw.attention_bias),
      o: (family === "llama" || family === "qwen3") && raw.attention_bias,
    },
    mlpBias: family === "llama" && raw.mlp_bias,
    qkNorm: family === "qwen3",
    maxPositionEmbeddings: raw.max_position_embeddings ?? rule.maxPositionEmbeddings,
    ...slidingOf(family, raw),
    bosTokenId: idOr(raw.bos_token_id, rule.bosTokenId),
    eosTokenIds: eos === null ? [] : [eos].flat().filter((id) => id >= 0),
    padTokenId: idOr(raw.pad_token_id, null),
    quantization: quantizationOf(raw, name),
  };
}

/** The longest sequence, in tokens, for which this library computes the model exactly. */
export function contextLimit(config: Pick<ModelConfig, "maxPositionEmbeddings" | "slidingWindow">): number {
  return Math.min(config.maxPositionEmbeddings, config.slidingWindow ?? Number.POSITIVE_INFINITY);
}
