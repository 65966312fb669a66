import { CpuDevice, SidenetError } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { contextLimit, parseModelConfig } from "../src/model/config.ts";
import { ropeFrequencies, ropeTables } from "../src/model/rope-tables.ts";

const llama = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  vocab_size: 128,
  hidden_size: 64,
  intermediate_size: 136,
  num_hidden_layers: 3,
  num_attention_heads: 4,
};
const family = (type: string, architecture: string) => ({
  ...llama,
  architectures: [architecture],
  model_type: type,
  num_key_value_heads: 2,
});
const mistral = family("mistral", "MistralForCausalLM");
const qwen2 = family("qwen2", "Qwen2ForCausalLM");
const qwen3 = family("qwen3", "Qwen3ForCausalLM");

function refusal(json: unknown): { code: string; message: string } {
  try {
    parseModelConfig(json);
  } catch (error) {
    if (error instanceof SidenetError) return error;
    throw error;
  }
  throw new Error("it was accepted");
}

describe("config.json", () => {
  it("fills in what transformers assumes for each family", () => {
    expect(parseModelConfig(llama)).toEqual({
      family: "llama",
      vocabSize: 128,
      hiddenSize: 64,
      intermediateSize: 136,
      numHiddenLayers: 3,
      numAttentionHeads: 4,
      numKeyValueHeads: 4,
      headDim: 16,
      rmsNormEps: 1e-6,
      rope: { theta: 10000, scaling: null },
      tieWordEmbeddings: false,
      attentionBias: { qkv: false, o: false },
      mlpBias: false,
      qkNorm: false,
      maxPositionEmbeddings: 2048,
      slidingWindow: null,
      slidingLayers: null,
      bosTokenId: 1,
      eosTokenIds: [2],
      padTokenId: null,
      quantization: null,
    });
    expect(parseModelConfig(mistral)).toMatchObject({
      family: "mistral",
      maxPositionEmbeddings: 131072,
      slidingWindow: 4096,
    });
    expect(parseModelConfig(qwen2)).toMatchObject({
      bosTokenId: null,
      eosTokenIds: [],
      attentionBias: { qkv: true, o: false },
    });
    expect(parseModelConfig(qwen3)).toMatchObject({
      headDim: 128,
      qkNorm: true,
      attentionBias: { qkv: false, o: false },
    });
  });

  it("takes what the file says before what is assumed", () => {
    const given = {
      head_dim: 32,
      num_key_value_heads: 2,
      rms_norm_eps: 1e-5,
      tie_word_embeddings: true,
      attention_bias: true,
      mlp_bias: true,
      max_position_embeddings: 4096,
      bos_token_id: 0,
      eos_token_id: [5, -1, 0],
      pad_token_id: -1,
      hidden_act: "silu",
    };
    expect(parseModelConfig({ ...llama, ...given })).toMatchObject({
      headDim: 32,
      numKeyValueHeads: 2,
      rmsNormEps: 1e-5,
      tieWordEmbeddings: true,
      attentionBias: { qkv: true, o: true },
      mlpBias: true,
      maxPositionEmbeddings: 4096,
      bosTokenId: 0,
      eosTokenIds: [5, 0],
      padTokenId: null,
    });
    expect(parseModelConfig({ ...qwen3, attention_bias: true }).attentionBias).toEqual({
      qkv: true,
      o: true,
    });
    expect(parseModelConfig({ ...mistral, attention_bias: true }).attentionBias).toEqual({
      qkv: false,
      o: false,
    });
    expect(parseModelConfig({ ...qwen3, mlp_bias: true }).mlpBias).toBe(false);
  });

  it("takes an absent number of key-value heads for the family's, and null for one per head", () => {
    const heads = (config: object, given: object) =>
      parseModelConfig({ ...config, num_attention_heads: 64, hidden_size: 128, ...given }).numKeyValueHeads;
    expect(heads(mistral, { num_key_value_heads: undefined })).toBe(8);
    expect(heads(qwen2, { num_key_value_heads: undefined })).toBe(32);
    for (const config of [mistral, qwen2, llama])
      expect(heads(config, { num_key_value_heads: null })).toBe(64);
  });

  it("knows the family by its type where no architecture is named", () => {
    expect(parseModelConfig({ ...qwen2, architectures: null }).family).toBe("qwen2");
    expect(parseModelConfig({ ...mistral, model_type: undefined }).family).toBe("mistral");
  });

  const scaled = {
    type: "llama3",
    factor: 8,
    lowFreqFactor: 1,
    highFreqFactor: 4,
    originalMaxPositionEmbeddings: 64,
  };
  const llama3 = { factor: 8, low_freq_factor: 1, high_freq_factor: 4, original_max_position_embeddings: 64 };
  it.each([
    ["none", { rope_theta: 5e5, rope_scaling: null }, { theta: 5e5, scaling: null }],
    [
      "rope_scaling, rope_type",
      { rope_theta: 5e5, rope_scaling: { rope_type: "llama3", ...llama3 } },
      { theta: 5e5, scaling: scaled },
    ],
    [
      "rope_scaling, type",
      { rope_scaling: { type: "linear", factor: 2 } },
      { theta: 10000, scaling: { type: "linear", factor: 2 } },
    ],
    [
      "rope_parameters",
      { rope_parameters: { rope_theta: 5e4, rope_type: "default" } },
      { theta: 5e4, scaling: null },
    ],
    [
      "rope_parameters, llama3",
      { rope_parameters: { rope_theta: 5e4, rope_type: "llama3", ...llama3 } },
      { theta: 5e4, scaling: scaled },
    ],
    [
      "rope_scaling, with fields of nothing and the length of pretraining twice",
      {
        original_max_position_embeddings: 64,
        rope_scaling: { rope_type: "llama3", attention_factor: null, ...llama3 },
      },
      { theta: 10000, scaling: scaled },
    ],
    [
      "rope_scaling, which replaces rope_parameters",
      {
        rope_theta: 5e5,
        rope_scaling: { type: "linear", factor: 2 },
        rope_parameters: { rope_theta: 5e4, rope_type: "llama3", ...llama3 },
      },
      { theta: 5e5, scaling: { type: "linear", factor: 2 } },
    ],
    [
      "rope_parameters beside an empty rope_scaling",
      { rope_scaling: {}, rope_parameters: { rope_theta: 5e4, rope_type: "linear", factor: 2 } },
      { theta: 5e4, scaling: { type: "linear", factor: 2 } },
    ],
  ])("reads rope spelled as %s", (_, fields, rope) => {
    expect(parseModelConfig({ ...llama, ...fields }).rope).toEqual(rope);
  });

  it("knows when a sliding window is in use, and how long full attention is the same", () => {
    const window = { sliding_window: 100, max_position_embeddings: 500 };
    const limit = (json: object) => contextLimit(parseModelConfig(json));
    expect(limit({ ...mistral, ...window })).toBe(100);
    expect(limit({ ...mistral, ...window, sliding_window: null })).toBe(500);
    expect(limit({ ...qwen2, ...window })).toBe(500);
    expect(limit({ ...qwen2, ...window, use_sliding_window: true, max_window_layers: 3 })).toBe(500);
    expect(limit({ ...qwen2, ...window, use_sliding_window: true, max_window_layers: 2 })).toBe(100);
    expect(limit({ ...qwen3, ...window, layer_types: ["full_attention", "sliding_attention"] })).toBe(100);
    expect(limit({ ...llama, ...window, layer_types: ["sliding_attention"] })).toBe(500);
    expect(limit({ ...mistral, ...window, layer_types: ["full_attention"] })).toBe(100);
    const onByDefault = { use_sliding_window: true, max_window_layers: 0, max_position_embeddings: 32768 };
    expect(limit({ ...qwen2, ...onByDefault })).toBe(4096);
    expect(limit({ ...qwen3, ...onByDefault, sliding_window: null })).toBe(32768);
  });

  it("keeps the kind of a bitsandbytes NF4 checkpoint, so that a plan needs no weights", () => {
    const quantization_config = {
      quant_method: "bitsandbytes",
      load_in_4bit: true,
      bnb_4bit_quant_type: "nf4",
      bnb_4bit_use_double_quant: true,
      bnb_4bit_quant_storage: "uint8",
    };
    expect(parseModelConfig({ ...llama, quantization_config }).quantization).toEqual({
      type: "bitsandbytes-nf4",
      doubleQuant: true,
    });
    for (const change of [
      { load_in_4bit: false },
      { bnb_4bit_quant_type: "fp4" },
      { quant_method: "gptq" },
      { bnb_4bit_quant_storage: "bfloat16" },
    ]) {
      const refused = refusal({ ...llama, quantization_config: { ...quantization_config, ...change } });
      expect(refused.code).toBe("L-CONFIG-UNSUPPORTED");
    }
  });
});

describe("a config that is refused", () => {
  it.each<[string, unknown, string, RegExp]>([
    ["not an object", [], "L-CONFIG", /config\.json/],
    ["no sizes", { ...llama, hidden_size: undefined }, "L-CONFIG", /hidden_size/],
    ["a size of the wrong type", { ...llama, vocab_size: "128" }, "L-CONFIG", /vocab_size/],
    ["heads that do not divide", { ...llama, num_key_value_heads: 3 }, "L-CONFIG", /num_key_value_heads = 3/],
    ["an odd head", { ...llama, head_dim: 15 }, "L-CONFIG", /head_dim = 15/],
    [
      "another architecture",
      { ...llama, architectures: ["GemmaForCausalLM"] },
      "L-CONFIG-ARCHITECTURE",
      /GemmaForCausalLM/,
    ],
    [
      "no architecture",
      { ...llama, architectures: [], model_type: undefined },
      "L-CONFIG-ARCHITECTURE",
      /LlamaForCausalLM/,
    ],
    ["two answers", { ...llama, model_type: "qwen2" }, "L-CONFIG-ARCHITECTURE", /qwen2/],
    ["another activation", { ...llama, hidden_act: "gelu" }, "L-CONFIG-UNSUPPORTED", /hidden_act.*gelu/],
    ["scaled logits", { ...llama, logits_scaling: 8 }, "L-CONFIG-UNSUPPORTED", /logits_scaling = 8/],
    [
      "a scaled attention",
      { ...llama, attention_multiplier: 0.01 },
      "L-CONFIG-UNSUPPORTED",
      /attention_multiplier/,
    ],
    [
      "half a rotary",
      { ...llama, partial_rotary_factor: 0.5 },
      "L-CONFIG-UNSUPPORTED",
      /partial_rotary_factor/,
    ],
    ["experts", { ...llama, num_local_experts: 8 }, "L-CONFIG-UNSUPPORTED", /num_local_experts = 8/],
    [
      "linear attention layers",
      { ...llama, layer_types: ["linear_attention"] },
      "L-CONFIG-UNSUPPORTED",
      /linear_attention/,
    ],
    ["yarn", { ...llama, rope_scaling: { rope_type: "yarn", factor: 4 } }, "L-CONFIG-ROPE", /yarn/],
    [
      "dynamic, old spelling",
      { ...llama, rope_scaling: { type: "dynamic", factor: 4 } },
      "L-CONFIG-ROPE",
      /dynamic/,
    ],
    ["linear without a factor", { ...llama, rope_scaling: { type: "linear" } }, "L-CONFIG-ROPE", /factor/],
    [
      "llama3 with nothing between its limits",
      {
        ...llama,
        rope_scaling: {
          rope_type: "llama3",
          factor: 8,
          low_freq_factor: 4,
          high_freq_factor: 4,
          original_max_position_embeddings: 64,
        },
      },
      "L-CONFIG-ROPE",
      /high_freq_factor/,
    ],
    [
      "another length of pretraining beside rope_scaling",
      {
        ...llama,
        original_max_position_embeddings: 4096,
        rope_scaling: {
          rope_type: "llama3",
          factor: 8,
          low_freq_factor: 1,
          high_freq_factor: 4,
          original_max_position_embeddings: 8192,
        },
      },
      "L-CONFIG-ROPE",
      /original_max_position_embeddings/,
    ],
    [
      "attention in both directions",
      { ...llama, is_causal: false },
      "L-CONFIG-UNSUPPORTED",
      /is_causal = false/,
    ],
    [
      "rope by layer",
      { ...llama, rope_parameters: { full_attention: { rope_type: "default" } } },
      "L-CONFIG-ROPE",
      /full_attention/,
    ],
    [
      "half a rotary, new spelling",
      { ...llama, rope_parameters: { rope_type: "default", partial_rotary_factor: 0.5 } },
      "L-CONFIG-ROPE",
      /partial_rotary_factor/,
    ],
  ])("%s", (_, json, code, message) => {
    const refused = refusal(json);
    expect(refused.code).toBe(code);
    expect(refused.message).toMatch(message);
  });

  it("accepts fields of related models at values that change nothing", () => {
    const neutral = {
      logits_scaling: 1,
      partial_rotary_factor: 1,
      use_qk_norm: false,
      num_experts: 0,
      attention_multiplier: null,
      hidden_act: "swish",
    };
    expect(parseModelConfig({ ...llama, ...neutral })).toEqual(parseModelConfig(llama));
  });
});

describe("rope's frequencies", () => {
  it("fall from 1 by equal ratios, and linear scaling divides all of them", () => {
    expect([...ropeFrequencies({ theta: 10000, scaling: null }, 8)]).toEqual([
      1,
      ...[0.1, 0.01, 0.001].map((f) => expect.closeTo(f, 12)),
    ]);
    const scaling = { type: "linear", factor: 4 } as const;
    expect(ropeFrequencies({ theta: 10000, scaling }, 8)[2]).toBeCloseTo(0.01 / 4, 12);
  });

  it("are of pairs: a head of odd size has none", () => {
    expect(() => ropeTables(new CpuDevice(), { theta: 10000, scaling: null }, 5, 0, 3)).toThrow(
      /L-ROPE.*head_dim 5 has to be even/,
    );
  });

  it("scaled as for Llama 3 stay for short waves, are divided for long ones, and go over between them", () => {
    const limits = { lowFreqFactor: 2, highFreqFactor: 6, originalMaxPositionEmbeddings: 8192 };
    const scaling = { type: "llama3", factor: 8, ...limits } as const;
    /** What becomes of the frequency of a wave of which `waves` fit into the 8192 tokens of pretraining. */
    const change = (waves: number): number => {
      const f = (2 * Math.PI * waves) / 8192;
      return ropeFrequencies({ theta: f ** -2, scaling }, 4)[1] / f; // of two frequencies, 1 and 1 / √theta
    };
    for (const waves of [6.0001, 7, 100]) expect(change(waves), `${waves}`).toBe(1);
    for (const waves of [1.9999, 0.5, 0.01]) expect(change(waves), `${waves}`).toBeCloseTo(1 / 8, 12);
    expect(change(4)).toBeCloseTo((1 + 1 / 8) / 2, 9); // half way between 2 and 6 waves
    expect(change(5.9999)).toBeCloseTo(1, 3);
    expect(change(2.0001)).toBeCloseTo(1 / 8, 3);
  });
});
