import { type Device, ParamStore, TestRandom } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { describeStart } from "../src/cli/train-report.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { isBlockMatrix } from "../src/model/base-storage.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { quantizeNf4 } from "../src/model/nf4-weight.ts";
import { evaluateLosses } from "../src/training/evaluate-loss.ts";
import { measureStep, planStep } from "../src/training/plan.ts";
import { drawModel, randomWeights } from "./tiny-model.ts";

/** Wide enough that the features of 1,024 tokens take more than one part, and those of 512 do not. */
const CONFIG: ModelConfig = {
  ...drawModel(new TestRandom(1)),
  hiddenSize: 16,
  intermediateSize: 8456,
  numHiddenLayers: 1,
  numAttentionHeads: 2,
  numKeyValueHeads: 1,
  headDim: 8,
  maxPositionEmbeddings: 2048,
  mlpBias: false,
};
const TOKENS = 1024;

type Format = "nf4" | "f32" | "f16";

function decoderOf(device: Device, config: ModelConfig, format: Format): Decoder {
  const store = new ParamStore(device, "weights");
  const specs = decoderParameters(config);
  const values = randomWeights(specs, 1);
  for (const spec of specs) {
    const { shape, data } = values[spec.name];
    const ofMatrices = isBlockMatrix(spec) ? format : "f32";
    if (ofMatrices === "nf4") quantizeNf4(store, spec.name, Float32Array.from(data));
    else store.add(spec.name, device.tensor(data, shape, { dtype: ofMatrices }));
  }
  return new Decoder(config, store);
}

/** H_L, the names of the ops that made it, and the peak of their memory. */
async function hidden(decoder: Decoder, chunkTokens: number) {
  const { device } = decoder;
  const names: string[] = [];
  const inputIds = Int32Array.from({ length: TOKENS }, (_, i) => (i * 7) % decoder.config.vocabSize);
  const tokens = { inputIds, batchSize: 1, length: TOKENS, attentionMask: null };
  device.memory.resetPeak();
  device.onOp = (name) => names.push(name);
  const h = device.scope(() => decoder.hidden(device.ops, decoder.prepare(tokens), { chunkTokens }));
  device.onOp = null;
  const { peakBytes } = device.memory.peak();
  const values = await h.read();
  h.dispose();
  return { values, names, peakBytes };
}

const devices: [string, () => Promise<Device>][] = [["wasm", () => openNodeWasm({ threads: 2 })]];
if (process.env.SIDENET_DEVICE !== "cpu") {
  devices.push(["webgpu", () => openNodeWebGpu()]);
  devices.push(["webgpu, by the kernels of a GPU", () => openNodeWebGpu({ adapterClass: "discrete" })]);
}

describe.each(devices)("on %s the feed-forward half of a frozen block", (_, open) => {
  it.each<[string, Format, boolean]>([
    ["NF4", "nf4", false],
    ["f32", "f32", false],
    ["f16", "f16", false],
    ["f32 with biases", "f32", true],
  ])("of %s is the same in parts of the features as in chunks of tokens", async (_, format, mlpBias) => {
    using device = await open();
    using decoder = decoderOf(device, { ...CONFIG, mlpBias }, format);
    const inChunks = await hidden(decoder, TOKENS / 2);
    const inParts = await hidden(decoder, TOKENS);
    expect(inChunks.names).not.toContain("accumulate");
    expect(inParts.names.filter((name) => name === "accumulate").length).toBe(mlpBias ? 0 : 1);
    const scale = Math.max(...inChunks.values.map(Math.abs));
    for (const [i, value] of inParts.values.entries()) {
      if (!(Math.abs(value - inChunks.values[i]) <= 1e-5 * scale)) {
        expect.fail(`value ${i} is ${value}, wanted ${inChunks.values[i]}`);
      }
    }
  });

  it("is planned to the byte", async () => {
    using device = await open();
    const options = { method: { method: "ladder" }, batchSize: 1, context: TOKENS } as const;
    const step = { ...options, storage: { dtype: "f32", quantizeBlocks: true }, memory: {} } as const;
    const run = measureStep(device, CONFIG, step);
    await device.synchronize();
    expect(run).toEqual(planStep(CONFIG, { ...step, profile: device.profile }));
    expect(run.flopsByOp.accumulate).toBeDefined();
  });
});

it("an untrained LoRA, whose features are computed as a whole, is the frozen model but for rounding", async () => {
  using device = await openNodeWasm({ threads: 2 });
  using decoder = decoderOf(device, { ...CONFIG, numHiddenLayers: 2 }, "f32");
  using lora = makeAdapter({ method: "lora" }, decoder, "tiny");
  const ids = Int32Array.from({ length: TOKENS }, (_, i) => (i * 7) % decoder.config.vocabSize);
  const batch = {
    inputIds: ids,
    labels: ids,
    batchSize: 1,
    length: TOKENS,
    attentionMask: null,
    segments: null,
  };
  const start = async () => {
    const [frozen, initial] = await evaluateLosses(decoder, [null, lora], [batch], { chunkTokens: TOKENS });
    return { frozenEvalLoss: frozen, initialEvalLoss: initial, resumedFrom: null };
  };
  const untrained = await start();
  expect(untrained.initialEvalLoss).not.toBe(untrained.frozenEvalLoss);
  expect(describeStart(untrained, 1)).toContain("(equal but for rounding, as expected)");
  const same = { ...untrained, initialEvalLoss: untrained.frozenEvalLoss };
  expect(describeStart(same, 1)).toContain("(equal, as expected)");
  const b = lora.parameters.get("base_model.model.model.layers.1.mlp.down_proj.lora_B.weight");
  device.scope(() => device.ops.fill(b, { value: 0.01 }));
  expect(describeStart(await start(), 1)).toContain("DIFFERENT");
});
