// Who owns memory frees it, says so to whoever comes later, and leaves none behind where making it failed.
import { CpuDevice, MetaDevice, SidenetError, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { ModelCache } from "../src/generation/model-cache.ts";
import { type Adapter, METHODS } from "../src/methods/adapter.ts";
import { initializeWeights } from "../src/methods/initial-values.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { emptyWeights } from "../src/model/base-storage.ts";
import { Decoder } from "../src/model/decoder.ts";
import { kvShapes, StateCache } from "../src/model/state-cache.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const model = { ...drawModel(new TestRandom(5)), numHiddenLayers: 3, hiddenSize: 32, numAttentionHeads: 4 };
const batch = drawBatch(new TestRandom(1), model);

async function messageOf(body: () => unknown): Promise<string> {
  try {
    await body();
  } catch (error) {
    if (error instanceof SidenetError) return error.message;
    throw error;
  }
  return "no error";
}

describe("what was disposed says so to whoever uses it afterwards", () => {
  const own = METHODS.filter((method) => method !== "qlora" && method !== "full"); // full's belongs to the decoder

  it.each(own)("an adapter of method %s", async (method) => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model);
    const adapter: Adapter = makeAdapter({ method }, decoder, "tiny");
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
    adapter.dispose();
    const gone = /^\[T-USE-AFTER-FREE\] .*(disposed|freed by its ParamStore)/;
    expect(await messageOf(() => trainer.step(batch))).toMatch(gone);
    const run = () =>
      device.scope(() => {
        const y = residualStream(decoder, adapter, decoder.prepare(batch));
        if (adapter.head) decoder.logits(device.ops, y, adapter.head);
      });
    expect(await messageOf(run)).toMatch(gone);
    expect(trainer.counters.updates).toBe(0);
  });

  it("a trainer, whose optimizer has gone with it", async () => {
    using decoder = randomDecoder(new CpuDevice(), model);
    using adapter = makeAdapter({ method: "lora" }, decoder, "tiny");
    const trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
    trainer.dispose();
    expect(await messageOf(() => trainer.step(batch))).toContain("an AdamW that was disposed");
    expect(trainer.counters.updates).toBe(0);
  });

  it("a decoder", async () => {
    const decoder = randomDecoder(new CpuDevice(), model);
    const { device } = decoder;
    decoder.dispose();
    const run = () => device.scope(() => decoder.hidden(device.ops, decoder.prepare(batch)));
    expect(await messageOf(run)).toMatch(/^\[T-USE-AFTER-FREE\] .*freed by its ParamStore/);
  });
});

it("full tuning accounts the model's weights as trained, until it is disposed", () => {
  const device = new MetaDevice();
  const decoder = new Decoder(model, emptyWeights(device, model, {}));
  const before = device.memory.live;
  const adapter = makeAdapter({ method: "full" }, decoder, "tiny");
  expect(device.memory.live).toEqual({ ...before, weights: 0, adapter: before.weights });
  adapter.dispose();
  expect(device.memory.live).toEqual(before);
  using other = makeAdapter({ method: "full" }, decoder, "tiny");
  decoder.dispose();
  other.dispose(); // after the weights' owner: nothing to do
  expect(device.memory.liveBytes).toBe(0);
});

describe("what does not fit into memory leaves nothing behind:", () => {
  /** Makes something under every limit that cuts it off in the middle. */
  async function underLimits(device: MetaDevice, make: () => { dispose(): void }) {
    const { memory } = device;
    const before = memory.liveBytes;
    memory.limitBytes = Number.POSITIVE_INFINITY;
    make().dispose();
    const whole = memory.peak().peakBytes - before;
    for (const share of [0, 0.3, 0.6, 0.95]) {
      memory.limitBytes = before + Math.floor(share * whole);
      expect(await messageOf(make)).toContain("T-OUT-OF-MEMORY");
      expect(memory.liveBytes).toBe(before);
    }
    memory.limitBytes = Number.POSITIVE_INFINITY;
  }

  it.each(["ladder", "xladder", "lora", "head"] as const)("an adapter of method %s", async (method) => {
    const device = new MetaDevice();
    using decoder = new Decoder(model, emptyWeights(device, model, {}));
    await underLimits(device, () => makeAdapter({ method }, decoder, "tiny"));
  });

  it("the weights of a model", async () => {
    for (const quantizeBlocks of [false, true]) {
      const device = new MetaDevice();
      await underLimits(device, () => emptyWeights(device, model, { quantizeBlocks }));
    }
    const device = new MetaDevice();
    await underLimits(device, () => initializeWeights(device, model));
  });

  it("a cache of keys and values", async () => {
    const device = new MetaDevice();
    const shapes = kvShapes({ ...model, numLayers: 3 }, 16);
    await underLimits(device, () => StateCache.empty(device, shapes, 2, 16));
  });

  it("the caches of a model with its side network", async () => {
    const device = new MetaDevice();
    using decoder = new Decoder(model, emptyWeights(device, model, {}));
    using adapter = makeAdapter({ method: "ladder" }, decoder, "tiny");
    await underLimits(device, () => ModelCache.empty(decoder, [null, adapter], 2, 16));
    using caches = ModelCache.empty(decoder, [null, adapter], 2, 16);
    await underLimits(device, () => caches.take([1, 0, 1]));
  });
});
