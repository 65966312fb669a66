/** The `config.json` of a Hugging Face checkpoint, from a `ModelConfig`. */
import { SidenetError } from "@sidenet/tensor";
import { FAMILIES, type Family, type ModelConfig } from "../model/config.ts";
import type { Rope } from "../model/config-rope.ts";

/** How the weights beside it are stored. */
export type CheckpointType = "float32" | "float16" | "bfloat16";

/** The `quantization_config` of bitsandbytes for NF4 with double quantization. */
export const quantizationJson = (computeType: CheckpointType): object => ({
  quant_method: "bitsandbytes",
  load_in_4bit: true,
  load_in_8bit: false,
  bnb_4bit_quant_type: "nf4",
  bnb_4bit_use_double_quant: true,
  bnb_4bit_compute_dtype: computeType,
  bnb_4bit_quant_storage: "uint8",
});

function scalingJson({ scaling }: Rope): object | null {
  if (scaling === null) return null;
  if (scaling.type === "linear") return { rope_type: "linear", factor: scaling.factor };
  return {
    rope_type: "llama3",
    factor: scaling.factor,
    low_freq_factor: scaling.lowFreqFactor,
    high_freq_factor: scaling.highFreqFactor,
    original_max_position_embeddings: scaling.originalMaxPositionEmbeddings,
  };
}

/** GGUF names Mistral "llama"; a sliding window, which only Mistral has, distinguishes the two. */
const familyOf = ({ family, slidingWindow }: ModelConfig): Family =>
  family === "llama" && slidingWindow !== null ? "mistral" : family;

/** Fields that not every family has. Throws `L-CONFIG-UNSUPPORTED` for biases that the family has no field for. */
function familyFields(config: ModelConfig, family: Family): object {
  const { qkv, o } = config.attentionBias;
  const window = config.slidingWindow;
  const layers = config.slidingLayers;
  const refuse = (): never => {
    throw new SidenetError(
      "L-CONFIG-UNSUPPORTED",
      `a config.json of ${FAMILIES[family].architecture} has no field for biases on ${qkv ? "q, k, v" : ""}${o ? " and o" : ""}` +
        `${config.mlpBias ? " and the feed-forward layers" : ""}. Keep the model in its own format.`,
    );
  };
  if (family === "llama") {
    return qkv === o ? { attention_bias: qkv, mlp_bias: config.mlpBias } : refuse();
  }
  if (config.mlpBias) refuse();
  if (family === "mistral") return qkv || o ? refuse() : { sliding_window: window };
  const sliding = {
    use_sliding_window: window !== null,
    sliding_window: window,
    max_window_layers: layers ? layers.indexOf(true) : 0, // where "layer_types" is not read
    ...(layers && { layer_types: layers.map((slides) => (slides ? "sliding_attention" : "full_attention")) }),
  };
  if (family === "qwen2") return qkv && !o ? sliding : refuse();
  return qkv === o ? { attention_bias: qkv, ...sliding } : refuse();
}

/** `parseModelConfig` gives the same configuration back, but for a "llama" with a sliding window, which is Mistral's. */
export function modelConfigJson(config: ModelConfig, type: CheckpointType): Record<string, unknown> {
  const family = familyOf(config);
  const { eosTokenIds: eos } = config;
  return {
    architectures: [FAMILIES[family].architecture],
    model_type: family,
    vocab_size: config.vocabSize,
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.numHiddenLayers,
    num_attention_heads: config.numAttentionHeads,
    num_key_value_heads: config.numKeyValueHeads,
    head_dim: config.headDim,
    hidden_act: "silu",
    rms_norm_eps: config.rmsNormEps,
    max_position_embeddings: config.maxPositionEmbeddings,
    tie_word_embeddings: config.tieWordEmbeddings,
    rope_theta: config.rope.theta,
    rope_scaling: scalingJson(config.rope),
    ...familyFields(config, family),
    bos_token_id: config.bosTokenId,
    eos_token_id: eos.length === 0 ? null : eos.length === 1 ? eos[0] : eos,
    pad_token_id: config.padTokenId,
    torch_dtype: type,
  };
}
