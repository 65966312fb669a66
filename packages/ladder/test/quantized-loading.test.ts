/** A backbone becomes NF4 on the device part by part: what is live at the peak is the result and at most one layer more. */
import { readFileSync } from "node:fs";
import { MetaDevice } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import type { Checkpoint, CheckpointTensor } from "../src/formats/checkpoint.ts";
import { type BaseStorage, emptyWeights } from "../src/model/base-storage.ts";
import { type ModelConfig, parseModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";

/** A checkpoint in f16 of a model of these sizes, whose values do not matter. */
function emptyCheckpoint(config: ModelConfig): Checkpoint {
  const specs = decoderParameters(config);
  const sizeOf = (shape: readonly number[]) => shape.reduce((a, b) => a * b, 1);
  const values = new Float32Array(Math.max(...specs.map(({ shape }) => sizeOf(shape))));
  const tensors = new Map(
    specs.map(({ name, shape }) => {
      const tensor = {
        dtype: "F16",
        shape,
        sizeBytes: 2 * sizeOf(shape),
        readFloat32: async () => values.subarray(0, sizeOf(shape)),
      };
      return [name, tensor as unknown as CheckpointTensor];
    }),
  );
  return { name: "empty", tensors, metadata: new Map(), close: async () => {} } as unknown as Checkpoint;
}

const configOf = (name: string): ModelConfig => {
  const file = new URL(`../configs/${name}/config.json`, import.meta.url);
  return parseModelConfig(JSON.parse(readFileSync(file, "utf8")));
};

async function loaded(config: ModelConfig, storage: BaseStorage) {
  const device = new MetaDevice();
  using store = await loadWeights(device, config, emptyCheckpoint(config), storage);
  using planned = emptyWeights(new MetaDevice(), config, storage);
  const bytes = (weights: typeof store) =>
    [...weights].reduce((sum, [, { storage: s }]) => sum + s.sizeBytes, 0);
  expect(bytes(store)).toBe(bytes(planned));
  return {
    final: bytes(store),
    peak: device.memory.peak().peakBytes,
    workspace: device.memory.live.workspace,
  };
}

describe.each(["SmolLM2-1.7B"])("loading %s, two layers of it, to NF4", (name) => {
  const config = { ...configOf(name), numHiddenLayers: 2, vocabSize: 512 };
  const layer = decoderParameters(config).filter(({ name: n }) => n.startsWith("model.layers.0."));
  const elements = layer.reduce((sum, { shape }) => sum + shape.reduce((a, b) => a * b, 1), 0);

  it("peaks below its final size and one layer as NF4 holds it", async () => {
    const { final, peak, workspace } = await loaded(config, { quantizeBlocks: true });
    expect(workspace).toBe(0);
    expect(peak).toBeGreaterThan(final);
    expect(peak - final).toBeLessThan((4.127 / 8) * elements);
  });
});

it("loading with embedding table and lm_head in NF4 as well holds at most a part of 16 MiB beside them", async () => {
  const config = { ...configOf("SmolLM2-135M"), numHiddenLayers: 2 };
  const { final, peak } = await loaded(config, { quantizeBlocks: true, quantizeEmbeddings: true });
  const plain = await loaded(config, { quantizeBlocks: true });
  const { vocabSize: V, hiddenSize: d } = config;
  expect(plain.final - final).toBeGreaterThan(3.4 * V * d); // 4 bytes became 4.127 bits
  // A part in f32 is 16 MiB, whatever the matrix is.
  expect(peak - final).toBeLessThan(17 * 2 ** 20);
});
