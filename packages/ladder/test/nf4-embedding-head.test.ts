/** Embeddings and head in NF4: they compute what their dequantized values compute, and train side networks as those do. */
import { CpuDevice, type Device, ParamStore, TestRandom } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import { afterAll, describe, expect, it } from "vitest";
import { HeadTuning } from "../src/methods/head-tuning.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { denseMatrix, quantizeNf4 } from "../src/model/nf4-weight.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, drawSide, randomDecoder } from "./tiny-model.ts";

const devices: [string, () => Promise<Device>][] = [["cpu", async () => new CpuDevice()]];
if (process.env.SIDENET_DEVICE !== "cpu") devices.push(["webgpu", () => openNodeWebGpu({ poison: true })]);

const isEnd = (name: string) => name === "lm_head.weight" || name === "model.embed_tokens.weight";

/** A decoder whose embedding table and lm_head are in NF4, and one with their dequantized values. */
async function bothForms(device: Device, model: ModelConfig): Promise<[Decoder, Decoder]> {
  using plain = randomDecoder(device, model);
  const [store, dense] = [new ParamStore(device, "weights"), new ParamStore(device, "weights")];
  for (const { name, shape } of decoderParameters(model)) {
    const w = plain.weights.get(name);
    if (isEnd(name)) {
      quantizeNf4(store, name, Float32Array.from(await w.read()));
      dense.add(name, denseMatrix(store, name, shape));
    } else for (const to of [store, dense]) to.add(name, device.ops.cast(w, { to: "f32" }));
  }
  return [new Decoder(model, store), new Decoder(model, dense)];
}

describe.each(devices)("embedding table and lm_head in NF4 on %s", (_, open) => {
  let device: Device;
  afterAll(() => device?.dispose());

  it.each([true, false])("learn as their dequantized values do, tied %s", async (tieWordEmbeddings) => {
    device ??= await open();
    const pick = new TestRandom(31);
    const model = { ...drawModel(pick), tieWordEmbeddings, vocabSize: 44 };
    const config = drawSide(pick, model);
    const batch = drawBatch(pick, model);
    const [quantized, dense] = await bothForms(device, model);
    const losses: number[][] = [];
    for (const decoder of [quantized, dense]) {
      using side = SideNetwork.initialize(device, config, model);
      using trainer = new Trainer(decoder, side, { learningRate: () => 0.02 });
      const seen = [await evaluateLoss(decoder, null, [batch])];
      for (let step = 0; step < 4; step++) seen.push((await trainer.step(batch)).loss);
      losses.push(seen);
    }
    for (const [i, loss] of losses[0].entries()) expect(loss).toBeCloseTo(losses[1][i], 4);
    expect(losses[0][4]).toBeLessThan(losses[0][1]);
    expect(() => HeadTuning.initialize(quantized)).toThrow(/L-HEAD/);
    quantized.dispose();
    dense.dispose();
    expect(device.memory.liveCount).toBe(0);
  });

  it("have f32 copies, as every weight has", async () => {
    device ??= await open();
    const model = drawModel(new TestRandom(32));
    const [quantized, dense] = await bothForms(device, model);
    for (const { name, shape } of decoderParameters(model)) {
      using copy = device.scope(() => quantized.denseWeight(name));
      expect(copy.shape).toEqual(shape);
      expect(await copy.read()).toEqual(await dense.weights.get(name).read());
    }
    expect(() => quantized.denseWeight("q_proj")).toThrow(/T-NAME/);
    quantized.dispose();
    dense.dispose();
  });
});
