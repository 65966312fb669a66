import { type Device, ParamStore, Random, sizeOf, type TestRandom } from "@sidenet/tensor";
import type { Adapter } from "../src/methods/adapter.ts";
import type { SideConfig } from "../src/methods/side-config.ts";
import type { LabeledBatch } from "../src/model/batch-loss.ts";
import type { ParameterSpec } from "../src/model/block.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";

/** A random small model of the Llama family. */
export function drawModel(pick: TestRandom): ModelConfig {
  const kv = pick.int(1, 2);
  return {
    family: "llama",
    vocabSize: pick.int(11, 60),
    hiddenSize: 2 * pick.int(4, 16),
    intermediateSize: pick.int(5, 40),
    numHiddenLayers: pick.int(1, 5),
    numAttentionHeads: kv * pick.int(1, 3),
    numKeyValueHeads: kv,
    headDim: 2 * pick.int(1, 8),
    rmsNormEps: 1e-5,
    rope: { theta: 10000, scaling: null },
    tieWordEmbeddings: pick.chance(0.5),
    attentionBias: { qkv: pick.chance(0.3), o: pick.chance(0.3) },
    mlpBias: pick.chance(0.3),
    qkNorm: pick.chance(0.3),
    maxPositionEmbeddings: 64,
    slidingWindow: null,
    slidingLayers: null,
    bosTokenId: 1,
    eosTokenIds: [2],
    padTokenId: 0,
    quantization: null,
  };
}

/** A random side network for it: rungs anywhere, free layers allowed. */
export function drawSide(pick: TestRandom, model: ModelConfig): SideConfig {
  const l = pick.int(1, 4);
  const kv = pick.int(1, 2);
  const rungs = Array.from({ length: pick.int(1, l) }, () => pick.int(0, model.numHiddenLayers));
  return {
    method: "ladder",
    base_model_name_or_path: "tiny",
    num_hidden_layers: l,
    hidden_size: pick.int(3, 12),
    intermediate_size: pick.int(3, 16),
    num_attention_heads: kv * pick.int(1, 2),
    num_key_value_heads: kv,
    head_dim: 2 * pick.int(1, 4),
    rungs: rungs.sort((a, b) => a - b),
    initial_rung: pick.chance(0.3),
    fusion: pick.oneOf(["add", "gate"] as const),
    gate_temperature: 0.1,
    rung_norm: pick.chance(0.7),
    init: "random",
    seed: pick.int(0, 1000),
  };
}

/** Random values of parameters by name, norms near 1, as a file holds them. */
export function randomWeights(specs: readonly ParameterSpec[], seed: number) {
  const named = specs.map(({ name, shape, kind }, stream) => {
    const data = new Random(seed, stream).normals(sizeOf(shape), kind === "norm" ? 0.1 : 0.3);
    return [
      name,
      { dtype: "F32", shape, data: kind === "norm" ? data.map((one) => one + 1) : data },
    ] as const;
  });
  return Object.fromEntries(named);
}

/** Adds to the parameters that are 0 in a new adapter, so that it does something. */
export function disturb({ parameters }: Adapter, seed: number): void {
  for (const [stream, [name, tensor]] of [...parameters].entries()) {
    if (!/up\.weight|lora_B|lm_head/.test(name)) continue;
    const { device } = tensor;
    device.scope(() => {
      const values = new Random(seed, stream).normals(tensor.size, 0.3);
      device.ops.accumulate(tensor, device.tensor(values, tensor.shape));
    });
  }
}

/** A decoder of `randomWeights`. */
export function randomDecoder(device: Device, config: ModelConfig, seed = 1): Decoder {
  const weights = new ParamStore(device, "weights");
  for (const [name, { shape, data }] of Object.entries(randomWeights(decoderParameters(config), seed))) {
    weights.add(name, device.tensor(data, shape, { category: "weights", label: name }));
  }
  return new Decoder(config, weights);
}

export function drawBatch(pick: TestRandom, model: ModelConfig): LabeledBatch {
  const batchSize = pick.int(1, 3);
  const length = pick.int(2, 12);
  const inputIds = pick.ints(batchSize * length, 0, model.vocabSize - 1);
  const attentionMask = new Uint8Array(batchSize * length).fill(1);
  const labels = Int32Array.from(inputIds);
  for (let b = 1; b < batchSize; b++) {
    // Right padding: hidden, and not scored.
    const padded = pick.int(0, length - 2);
    for (let t = length - padded; t < length; t++) {
      attentionMask[b * length + t] = 0;
      labels[b * length + t] = -100;
    }
  }
  return { inputIds, labels, attentionMask, batchSize, length };
}
