import { CpuDevice } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { memorySource } from "../src/formats/byte-source.ts";
import type { Checkpoint } from "../src/formats/checkpoint.ts";
import { openSafetensors } from "../src/formats/safetensors.ts";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { type ModelConfig, parseModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { f32, MODEL, type TensorFile } from "./golden-cases.ts";

const config = parseModelConfig(MODEL);

const weightsOf = (model: ModelConfig): TensorFile =>
  Object.fromEntries(
    decoderParameters(model).map(({ name, shape }, i) => {
      const size = shape.reduce((a, b) => a * b, 1);
      return [
        name,
        f32(
          shape,
          Float32Array.from({ length: size }, (_, j) => (i + 1) / 3 + j),
        ),
      ];
    }),
  );

const checkpointOf = (tensors: TensorFile): Promise<Checkpoint> =>
  openSafetensors(memorySource(concatBytes(encodeSafetensors(tensors)), "model.safetensors"));

const load = async (
  model: ModelConfig,
  tensors: TensorFile,
  device = new CpuDevice(),
  dtype: "f32" | "f16" = "f32",
) => loadWeights(device, model, await checkpointOf(tensors), { dtype });

describe("weights from a checkpoint", () => {
  it("are those of the file, accounted as weights, with progress up to the last byte", async () => {
    const device = new CpuDevice();
    const tensors = weightsOf(config);
    const progress: [number, number][] = [];
    using store = await loadWeights(device, config, await checkpointOf(tensors), {
      onProgress: (done, total) => progress.push([done, total]),
    });
    expect(store.names().sort()).toEqual(Object.keys(tensors).sort());
    for (const [name, tensor] of store) {
      expect(await tensor.read()).toEqual(tensors[name].data);
      expect(tensor.category).toBe("weights");
    }
    expect(progress.length).toBe(store.names().length);
    expect(progress.at(-1)).toEqual([4 * store.count, 4 * store.count]);
  });

  it("are f16 on request, but for vectors", async () => {
    using store = await load(config, weightsOf(config), new CpuDevice(), "f16");
    for (const [name, { dtype, shape }] of store)
      expect(dtype, name).toBe(shape.length === 1 ? "f32" : "f16");
  });

  it("leave out what the library computes, and the head of a tied model", async () => {
    const tied = { ...config, tieWordEmbeddings: true };
    const tensors = {
      ...weightsOf(tied),
      "lm_head.weight": f32([13, 12], new Float32Array(156)),
      "model.layers.0.self_attn.rotary_emb.inv_freq": f32([2], [1, 0.01]),
    };
    using store = await load(tied, tensors);
    expect(store.names().length).toBe(Object.keys(tensors).length - 2);
  });

  const { "model.norm.weight": _, ...withoutNorm } = weightsOf(config);
  const refused: [title: string, code: string, ModelConfig, TensorFile][] = [
    ["a tensor is missing", "L-TENSOR-MISSING", config, withoutNorm],
    [
      "a shape differs",
      "L-TENSOR-SHAPE",
      config,
      { ...withoutNorm, "model.norm.weight": f32([11], new Array(11).fill(1)) },
    ],
    [
      "a bias has no place in the config",
      "L-TENSOR-UNEXPECTED",
      config,
      { ...weightsOf(config), "model.layers.1.mlp.up_proj.bias": f32([20], new Array(20).fill(0)) },
    ],
    ["the file has more layers", "L-TENSOR-UNEXPECTED", { ...config, numHiddenLayers: 1 }, weightsOf(config)],
    [
      "the config says NF4 and no weight is",
      "L-QUANTIZED",
      { ...config, quantization: { type: "bitsandbytes-nf4", doubleQuant: true } },
      weightsOf(config),
    ],
  ];
  it.each(refused)(
    "are refused when %s, with nothing left on the device",
    async (_title, code, model, tensors) => {
      const device = new CpuDevice();
      await expect(load(model, tensors, device)).rejects.toMatchObject({ code });
      expect(device.memory.liveCount).toBe(0);
    },
  );

  it("leave nothing on the device when it runs out of memory half-way", async () => {
    const device = new CpuDevice();
    device.memory.limitBytes = 2000;
    await expect(load(config, weightsOf(config), device)).rejects.toMatchObject({ code: "T-OUT-OF-MEMORY" });
    expect(device.memory.liveCount).toBe(0);
  });
});
