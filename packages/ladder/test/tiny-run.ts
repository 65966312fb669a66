// A model and data so small that a run of many steps takes a second, as files that `trainRun` reads.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, Random } from "@sidenet/tensor";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import type { Method } from "../src/methods/adapter.ts";
import { quantizesByDefault } from "../src/methods/method.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { readMetrics } from "../src/node/run/metrics-log.ts";
import type { TrainRunOptions } from "../src/node/train-run.ts";
import { randomWeights } from "./tiny-model.ts";

const LETTERS = [..."abcdefghijklmnopqrstuvwxyz .,"];

/** A `config.json`, but for the size of its vocabulary. */
export const TINY_CONFIG = {
  architectures: ["LlamaForCausalLM"],
  model_type: "llama",
  hidden_size: 16,
  intermediate_size: 24,
  num_hidden_layers: 2,
  num_attention_heads: 2,
  num_key_value_heads: 1,
  head_dim: 8,
  rms_norm_eps: 1e-5,
  max_position_embeddings: 64,
  rope_theta: 10000,
};
const CONFIG = { ...TINY_CONFIG, vocab_size: LETTERS.length + 1 };

const TOKENIZER = {
  added_tokens: [{ id: LETTERS.length, content: "</s>", special: true }],
  model: { type: "BPE", vocab: Object.fromEntries(LETTERS.map((letter, id) => [letter, id])), merges: [] },
};

/** Writes a random model of the Llama family, the same for the same seed, and `records` records of data. */
export async function writeTinyFiles(
  folder: string,
  records = 24,
  seed = 7,
): Promise<{ model: string; data: string; more: string }> {
  const model = join(folder, "model");
  await mkdir(model, { recursive: true });
  const tensors = randomWeights(decoderParameters(parseModelConfig(CONFIG)), seed);
  await writeFile(join(model, "model.safetensors"), concatBytes(encodeSafetensors(tensors)));
  await writeFile(join(model, "config.json"), JSON.stringify(CONFIG));
  await writeFile(join(model, "tokenizer.json"), JSON.stringify(TOKENIZER));
  await writeFile(join(model, "tokenizer_config.json"), JSON.stringify({ eos_token: "</s>" }));
  const data = join(folder, "data.jsonl");
  const more = join(folder, "more.jsonl");
  await writeFile(data, lines(records, 1));
  await writeFile(more, lines(6, 2));
  return { model, data, more };
}

/** What `sidenet train` takes for a Ladder over these files on the reference device. */
export const tinyArguments = ({ model, data }: { model: string; data: string }): string[] => [
  ...["--model", model, "--data", data, "--device", "cpu", "--held-out", "4", "--reduction", "2"],
];

function lines(count: number, seed: number): string {
  const random = new Random(seed, 0);
  const text = (length: number) =>
    Array.from({ length }, () => LETTERS[Math.floor(random.uniform() * LETTERS.length)]).join("");
  return Array.from({ length: count }, (_, i) => `${JSON.stringify({ text: text(6 + (i % 9)) })}\n`).join("");
}

/** Options of a run of 8 steps. */
export function tinyOptions(
  files: { readonly model: string; readonly data: string },
  outputDir: string,
  method: Method = "ladder",
  change: Partial<TrainRunOptions> = {},
): TrainRunOptions {
  return {
    model: files.model,
    data: [files.data],
    fields: {},
    outputDir,
    method: {
      method,
      ladder: { reduction: 2 },
      xladder: { reduction: 2 },
      lora: { rank: 2, dropout: 0.2 },
      seed: 3,
    },
    storage: { dtype: "f32", quantizeBlocks: quantizesByDefault(method), quantizeEmbeddings: false },
    memory: {},
    steps: 8,
    batchSize: 2,
    maxLength: null,
    heldOut: 4,
    learningRate: 0.01,
    warmupSteps: 2,
    schedule: "cosine",
    weightDecay: 0.01,
    maxGradNorm: 1,
    seed: 5,
    sampleTokens: 0,
    saveEvery: 3,
    ...change,
  };
}

/** What two runs must share to the bit: every line of metrics that does not measure time, and the adapter's bytes. */
export async function traceOf(folder: string): Promise<{ lines: object[]; adapter: string }> {
  const metrics = await readMetrics(join(folder, "metrics.jsonl"));
  const adapter = await readFile(join(folder, "adapter_model.safetensors"), "base64");
  const lines = metrics.map((line) =>
    "eval_loss" in line
      ? line
      : {
          step: line.step,
          loss: line.loss,
          norm: line.grad_norm,
          rate: line.learning_rate,
          tokens: line.tokens,
        },
  );
  return { lines, adapter };
}

export const cpu = (): CpuDevice => new CpuDevice();
