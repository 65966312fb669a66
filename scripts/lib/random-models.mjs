// Small models and LoRA adapters with random weights, to compare sidenet with other programs: every family and block form.

import { copyFileSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import {
  decoderParameters,
  encodeSafetensors,
  Lora,
  parseLoraConfig,
  parseModelConfig,
} from "@sidenet/ladder";
import { Random, sizeOf } from "@sidenet/tensor";
import { ROOT } from "./environment.mjs";

export const RANDOM_LLAMA = {
  model_type: "llama",
  architectures: ["LlamaForCausalLM"],
  vocab_size: 96,
  hidden_size: 48,
  intermediate_size: 80,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  hidden_act: "silu",
  rms_norm_eps: 1e-5,
  rope_theta: 10000,
  max_position_embeddings: 256,
  tie_word_embeddings: true,
  bos_token_id: 0,
  eos_token_id: 1,
};
/** Configurations (`config.json`) by name. */
export const RANDOM_MODELS = {
  llama: RANDOM_LLAMA,
  "llama-biases": { ...RANDOM_LLAMA, attention_bias: true, mlp_bias: true, tie_word_embeddings: false },
  mistral: {
    ...RANDOM_LLAMA,
    model_type: "mistral",
    architectures: ["MistralForCausalLM"],
    sliding_window: null,
  },
  qwen2: {
    ...RANDOM_LLAMA,
    model_type: "qwen2",
    architectures: ["Qwen2ForCausalLM"],
    num_key_value_heads: 4,
  },
  qwen3: { ...RANDOM_LLAMA, model_type: "qwen3", architectures: ["Qwen3ForCausalLM"], head_dim: 16 },
};

const LLAMA3 = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
/** The sizes of models that read texts: the vocabulary of `tiny-books`, and rows of whole blocks of 32, which GGUF needs. */
export const TEXT_SIZES = {
  vocab_size: 2048,
  hidden_size: 128,
  intermediate_size: 224,
  bos_token_id: 0,
  eos_token_id: 0,
};
/** `RANDOM_MODELS` and more forms, of `TEXT_SIZES`. */
export const TEXT_MODELS = Object.fromEntries(
  Object.entries({
    ...RANDOM_MODELS,
    "llama, linear rope": { ...RANDOM_LLAMA, rope_scaling: { type: "linear", factor: 4 } },
    "llama, llama3 rope": {
      ...RANDOM_LLAMA,
      rope_theta: 5e5,
      rope_scaling: { ...LLAMA3, original_max_position_embeddings: 32 },
    },
    "llama, untied": { ...RANDOM_LLAMA, tie_word_embeddings: false },
  }).map(([name, config]) => [name, { ...config, ...TEXT_SIZES }]),
);

/** Writes `config.json` and `model.safetensors` (float32) into a folder, and returns its path. */
export function writeRandomModel(folder, config) {
  mkdirSync(folder, { recursive: true });
  const tensors = {};
  for (const [stream, { name, shape, kind }] of decoderParameters(parseModelConfig(config)).entries()) {
    const data = new Random(3, stream).normals(sizeOf(shape), kind === "norm" ? 0.1 : 0.2);
    if (kind === "norm") for (let i = 0; i < data.length; i++) data[i] += 1;
    tensors[name] = { dtype: "F32", shape, data };
  }
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  writeFileSync(
    join(folder, "model.safetensors"),
    Buffer.concat(encodeSafetensors(tensors, { format: "pt" })),
  );
  return folder;
}

/** Writes a model of `TEXT_SIZES` with the tokenizer of `tiny-books` into a folder of `work` named after it; returns its path. */
export function writeTextModel(work, name) {
  const folder = writeRandomModel(join(work, name.replaceAll(/\W+/g, "-")), TEXT_MODELS[name]);
  for (const file of ["tokenizer.json", "tokenizer_config.json"])
    copyFileSync(join(ROOT, "packages/ladder/models/tiny-books", file), join(folder, file));
  return folder;
}

/** A LoRA with random values in both matrices; `config` has PEFT's fields. */
export function randomLora(device, config, model) {
  const fields = { peft_type: "LORA", base_model_name_or_path: "tiny", ...config };
  const adapter = Lora.initialize(device, parseLoraConfig(fields, "a case"), model, 5);
  for (const [stream, [name, tensor]] of [...adapter.parameters].entries()) {
    if (!name.includes("lora_B")) continue;
    const values = device.tensor(new Random(9, stream).normals(tensor.size, 0.3), tensor.shape);
    device.ops.fill(tensor, { value: 0 });
    device.ops.accumulate(tensor, values);
    values.dispose();
  }
  return adapter;
}
