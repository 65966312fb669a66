/** Small models on disk, of any family, for tests of reading and writing. */
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { modelConfigJson } from "../src/formats/hf-config.ts";
import { encodeSafetensors, type WritableTensor } from "../src/formats/safetensors-write.ts";
import type { ModelConfig } from "../src/model/config.ts";
import type { RopeScaling } from "../src/model/config-rope.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { convertModel } from "../src/node/convert-model.ts";
import type { ConvertOptions } from "../src/node/convert-options.ts";
import { openModel } from "../src/node/open-model.ts";
import { drawModel } from "./tiny-model.ts";

type StoredType = "F32" | "F16" | "BF16";
const NAMES = { F32: "float32", F16: "float16", BF16: "bfloat16" } as const;

/** A random configuration that its family can have. */
export function drawFamily(pick: TestRandom): ModelConfig {
  const family = pick.oneOf(["llama", "mistral", "qwen2", "qwen3"] as const);
  const bias = pick.chance(0.3);
  const model = drawModel(pick);
  const slidingWindow = family === "llama" ? null : pick.oneOf([null, 32]);
  const slides = Array.from({ length: model.numHiddenLayers }, () => pick.chance(0.5));
  const isMixed = family.startsWith("qwen") && slides.includes(true) && slides.includes(false);
  const scalings: (RopeScaling | null)[] = [
    null,
    { type: "linear", factor: 4 },
    { type: "llama3", factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalMaxPositionEmbeddings: 8192 },
    { type: "llama3", factor: 16, lowFreqFactor: 2, highFreqFactor: 3, originalMaxPositionEmbeddings: 64 },
  ];
  return {
    ...model,
    family,
    headDim: Math.max(6, model.headDim), // with fewer frequencies a scaling may change none, and a GGUF file shows none
    rope: { theta: pick.oneOf([1e4, 5e5, 1e6]), scaling: pick.oneOf(scalings) },
    attentionBias: {
      qkv: family === "qwen2" || (family !== "mistral" && bias),
      o: (family === "llama" || family === "qwen3") && bias,
    },
    mlpBias: family === "llama" && pick.chance(0.3),
    qkNorm: family === "qwen3",
    slidingWindow,
    slidingLayers: slidingWindow !== null && isMixed ? slides : null,
  };
}

/** Random weights under their Hugging Face names. */
export function drawWeights(
  config: ModelConfig,
  dtype: StoredType,
  seed = 1,
): Record<string, WritableTensor> {
  const pick = new TestRandom(seed);
  return Object.fromEntries(
    decoderParameters(config).map(({ name, shape }) => {
      const count = shape.reduce((a, b) => a * b, 1);
      return [name, { dtype, shape, data: Float32Array.from(pick.normals(count, 0.3)) }];
    }),
  );
}

/** Writes `config.json` and `model.safetensors` into a folder, and gives its path. */
export async function putModel(
  folder: string,
  config: ModelConfig,
  dtype: StoredType = "F16",
  weights = drawWeights(config, dtype),
): Promise<string> {
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, "config.json"), JSON.stringify(modelConfigJson(config, NAMES[dtype])));
  await writeFile(join(folder, "model.safetensors"), encodeSafetensors(weights));
  return folder;
}

const device = new CpuDevice();

/** `convertModel` with everything at its default. */
export function convert(
  model: string,
  output: string,
  type: ConvertOptions["type"],
  more: Partial<ConvertOptions> = {},
) {
  const options = { model, output, type, adapter: null, maxShardBytes: 5e9, overwrite: false };
  return convertModel(device, { ...options, ...more });
}

/** Configuration and values of a model on disk, by name. */
export async function contentOf(
  path: string,
): Promise<{ config: ModelConfig; values: Map<string, Float32Array> }> {
  const model = await openModel(path);
  try {
    const values = new Map<string, Float32Array>();
    for (const [name, tensor] of model.checkpoint.tensors) values.set(name, await tensor.readFloat32());
    return { config: model.config, values };
  } finally {
    await model.close();
  }
}

/** Large enough for NF4 blocks, small enough for a test. */
export const MODEL: ModelConfig = {
  ...drawFamily(new TestRandom(8)),
  family: "llama",
  vocabSize: 30,
  hiddenSize: 32,
  numHiddenLayers: 2,
  attentionBias: { qkv: true, o: true },
  qkNorm: false,
  slidingWindow: null,
  slidingLayers: null,
};
