import { Tape } from "@sidenet/autograd";
import { CpuDevice, type Device, MetaDevice, TestRandom } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { generate, type Sampling } from "../src/generation/generate.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { sideParameters } from "../src/methods/side-config.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import { shiftLabels } from "../src/model/decoder.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, drawSide, randomDecoder } from "./tiny-model.ts";

const runs = (numRuns: number) => ({
  numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
  seed: Number(process.env.SIDENET_SEED ?? 20260101),
});
const drawn = fc.record({ seed: fc.nat(), scale: fc.constantFrom(1, 0.5, 0) });

const devices: [string, () => Promise<Device>][] = [["cpu", async () => new CpuDevice()]];
if (process.env.SIDENET_DEVICE !== "cpu") devices.push(["webgpu", () => openNodeWebGpu({ poison: true })]);

describe.each(devices)("a side network on %s", (_, open) => {
  let device: Device;
  const use = async (): Promise<Device> => {
    device ??= await open();
    return device;
  };
  afterAll(() => device?.dispose());

  it("at its start equals the backbone exactly, in hidden state and in loss", async () => {
    const on = await use();
    await fc.assert(
      fc.asyncProperty(drawn, async ({ seed, scale }) => {
        const pick = new TestRandom(seed, scale);
        const model = drawModel(pick);
        using decoder = randomDecoder(on, model);
        using side = SideNetwork.initialize(on, drawSide(pick, model), model);
        const batch = drawBatch(pick, model);
        const streamOf = (with_: SideNetwork | null) =>
          on.scope(() => residualStream(decoder, with_, decoder.prepare(batch)));
        using bare = streamOf(null);
        using sided = streamOf(side);
        expect(await sided.read()).toEqual(await bare.read());
        expect(await evaluateLoss(decoder, side, [batch])).toBe(await evaluateLoss(decoder, null, [batch]));
      }),
      runs(15),
    );
    expect(on.memory.liveCount).toBe(0);
  });

  it("records nothing of the backbone's blocks, and saves no more for a deeper one", async () => {
    const on = await use();
    await fc.assert(
      fc.property(drawn, ({ seed, scale }) => {
        const pick = new TestRandom(seed, scale);
        const model = drawModel(pick);
        const config = { ...drawSide(pick, model), rungs: [0] };
        const batch = drawBatch(pick, model);
        const record = (numHiddenLayers: number) => {
          const deeper = { ...model, numHiddenLayers };
          using decoder = randomDecoder(on, deeper);
          using side = SideNetwork.initialize(on, config, deeper);
          return on.scope(() => {
            using tape = new Tape(on, side.parameters);
            const y = residualStream(decoder, side, decoder.prepare(batch), { ops: tape });
            const targets = on.tensor(
              shiftLabels(batch.labels, batch.batchSize, batch.length),
              [batch.labels.length],
              {
                dtype: "i32",
              },
            );
            decoder.loss(tape, y, targets);
            // Every recorded weight is the side network's, or the norm and head that both share.
            return { ops: tape.records.map(({ op }) => op), savedBytes: tape.savedBytes };
          });
        };
        const shallow = record(1);
        expect(record(4)).toEqual(shallow);
        const blocks = shallow.ops.filter((op) => op === "attention").length;
        expect(blocks).toBe(config.num_hidden_layers);
      }),
      runs(10),
    );
    expect(on.memory.liveCount).toBe(0);
  });

  it("trains: the loss on one batch falls, and a step ends with what the second step ended with", async () => {
    const on = await use();
    const pick = new TestRandom(11);
    const model = { ...drawModel(pick), numHiddenLayers: 3 };
    using decoder = randomDecoder(on, model);
    const config = { ...drawSide(pick, model), rungs: [1, 3], num_hidden_layers: 3 };
    using side = SideNetwork.initialize(on, config, model);
    using trainer = new Trainer(decoder, side, { learningRate: () => 0.02 });
    const batch = drawBatch(pick, model);
    const losses: number[] = [];
    let afterStep2 = 0;
    for (let step = 1; step <= 12; step++) {
      losses.push((await trainer.step(batch)).loss);
      if (step === 2) afterStep2 = on.memory.liveBytes;
    }
    expect(on.memory.liveBytes).toBe(afterStep2);
    expect(losses[11]).toBeLessThan(losses[0] - 0.1);
    expect(on.memory.live).toMatchObject({ saved: 0, gradients: 0, workspace: 0, rungs: 0 });
  });

  it("names the op that made the first infinity, and none in a clean step, with detectAnomaly", async () => {
    const on = await use();
    on.detectAnomaly = true;
    const pick = new TestRandom(11);
    const model = drawModel(pick);
    using decoder = randomDecoder(on, model);
    using side = SideNetwork.initialize(on, drawSide(pick, model), model);
    using trainer = new Trainer(decoder, side, { learningRate: () => 1e35 });
    const batch = drawBatch(pick, model);
    try {
      expect((await trainer.step(batch)).loss).toBeGreaterThan(0);
      await expect(trainer.step(batch)).rejects.toMatchObject({ code: "T-ANOMALY" });
    } finally {
      on.detectAnomaly = false;
    }
  });

  it("generates with caches what it says without them", async () => {
    const on = await use();
    await fc.assert(
      fc.asyncProperty(drawn, async ({ seed, scale }) => {
        const pick = new TestRandom(seed, scale);
        const model = drawModel(pick);
        using decoder = randomDecoder(on, model);
        using side = SideNetwork.initialize(on, drawSide(pick, model), model);
        const prompt = [...pick.ints(pick.int(1, 6), 0, model.vocabSize - 1)];
        const cached = await generate(decoder, side, prompt, { maxTokens: 4 });
        const ids = [...prompt];
        while (ids.length < prompt.length + 4) {
          using next = on.scope(() => {
            const batch = { inputIds: ids, batchSize: 1, length: ids.length, attentionMask: null };
            const y = residualStream(decoder, side, decoder.prepare(batch));
            return on.ops.argmax(
              decoder.logits(on.ops, on.ops.slice(y, { axis: 1, start: ids.length - 1, count: 1 })),
            );
          });
          ids.push(await next.item());
        }
        expect(cached).toEqual(ids.slice(prompt.length));
      }),
      runs(8),
    );
    expect(on.memory.liveCount).toBe(0);
  });

  it("samples the same ids for the same seed, and at temperature 0 or topK 1 those of greedy choice", async () => {
    const on = await use();
    const pick = new TestRandom(17);
    const model = drawModel(pick);
    using decoder = randomDecoder(on, model);
    using side = SideNetwork.initialize(on, drawSide(pick, model), model);
    const write = (sampling?: Sampling) =>
      generate(decoder, side, [1, 5, 3], { maxTokens: 24, sampling: sampling ?? null });
    const greedy = await write();
    for (const sampling of [{ temperature: 0 }, { temperature: 1e-6 }, { topK: 1 }]) {
      expect(await write(sampling), JSON.stringify(sampling)).toEqual(greedy);
    }
    const sampling = { temperature: 1.5, topP: 0.95, minP: 0.01, repetitionPenalty: 1.2, seed: 3 };
    const drawn = await write(sampling);
    expect(await write(sampling)).toEqual(drawn);
    expect(await write({ ...sampling, seed: 4 })).not.toEqual(drawn);
    const elsewhere = new CpuDevice();
    using sameDecoder = randomDecoder(elsewhere, model);
    using sameSide = SideNetwork.initialize(elsewhere, side.config, model);
    expect(await generate(sameDecoder, sameSide, [1, 5, 3], { maxTokens: 24, sampling })).toEqual(drawn);
    const unrepeated = await write({ temperature: 0, repetitionPenalty: 1000 });
    expect(new Set(unrepeated.slice(0, 5)).size).toBe(5);
  });
});

it("plans on meta the peak and the operations of a real run, to the byte", async () => {
  const cpuOnly = process.env.SIDENET_DEVICE === "cpu";
  if (cpuOnly) return;
  const gpu = await openNodeWebGpu();
  await fc.assert(
    fc.asyncProperty(drawn, async ({ seed, scale }) => {
      const reports = [];
      for (const on of [gpu, new MetaDevice(gpu.profile)]) {
        const pick = new TestRandom(seed, scale);
        const model = drawModel(pick);
        const before = on.flops;
        on.memory.resetPeak();
        using decoder = randomDecoder(on, model);
        using side = SideNetwork.initialize(on, drawSide(pick, model), model);
        const batch = drawBatch(pick, model);
        using trainer = new Trainer(decoder, side, { learningRate: () => 0.01 });
        for (let step = 0; step < 2; step++) {
          const { loss, norm } = trainer.dispatchStep(batch);
          loss.dispose();
          norm.dispose();
        }
        reports.push({ peak: on.memory.peak(), flops: on.flops - before, parameters: side.parameters.count });
      }
      expect(reports[1]).toEqual(reports[0]);
    }),
    runs(8),
  );
  gpu.dispose();
});

it("names every parameter once", () => {
  fc.assert(
    fc.property(drawn, ({ seed, scale }) => {
      const pick = new TestRandom(seed, scale);
      const model = drawModel(pick);
      const names = sideParameters(drawSide(pick, model), model).map((spec) => spec.name);
      expect(new Set(names).size).toBe(names.length);
    }),
  );
});
