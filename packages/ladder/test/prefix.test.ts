// A prefix changes nothing but the price: a row after it is what it would be as the end of one longer row.
import { CpuDevice, type Device, MetaDevice, type Tensor, TestRandom } from "@sidenet/tensor";
import { openNodeWasm, openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { scoreContinuations } from "../src/eval/score-continuations.ts";
import { generate, generateBatch } from "../src/generation/generate.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import type { LabeledBatch } from "../src/model/batch-loss.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, drawSide, randomDecoder } from "./tiny-model.ts";

const runs = (numRuns: number) => ({
  numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
  seed: Number(process.env.SIDENET_SEED ?? 20260101),
});
const drawn = fc.record({ seed: fc.nat(), scale: fc.constantFrom(1, 0.5, 0) });

const devices: [string, () => Promise<Device>][] = [["cpu", async () => new CpuDevice()]];
if (process.env.SIDENET_DEVICE !== "cpu") {
  devices.push(["webgpu", () => openNodeWebGpu({ poison: true })]);
  devices.push(["wasm", () => openNodeWasm({ threads: 1 })]);
}

/** The batch with its rows' masks turned round, so that what padded them on the right does so on the left. */
function paddedOnTheLeft(batch: LabeledBatch): LabeledBatch {
  const { length, batchSize } = batch;
  const rows = Array.from({ length: batchSize }, (_, b) =>
    Array.from({ length }, (_, t) => batch.attentionMask?.[b * length + t] ?? 1).reverse(),
  );
  return { ...batch, attentionMask: Uint8Array.from(rows.flat()) };
}

/** The same rows with the prefix written out in front of the first visible token of each. */
function joined(prefix: readonly number[], batch: LabeledBatch): LabeledBatch {
  const { batchSize, length } = batch;
  const total = prefix.length + length;
  const whole = { inputIds: new Int32Array(batchSize * total), mask: new Uint8Array(batchSize * total) };
  for (let b = 0; b < batchSize; b++) {
    const visible = Array.from({ length }, (_, t) => batch.attentionMask?.[b * length + t] ?? 1);
    const ids = Array.from({ length }, (_, t) => batch.inputIds[b * length + t]);
    const first = visible.indexOf(1);
    whole.inputIds.set([...ids.slice(0, first), ...prefix, ...ids.slice(first)], b * total);
    whole.mask.set([...visible.slice(0, first), ...prefix.map(() => 1), ...visible.slice(first)], b * total);
  }
  const { inputIds, mask: attentionMask } = whole;
  return { inputIds, attentionMask, labels: inputIds, batchSize, length: total };
}

describe.each(devices)("a prefix on %s", (_, open) => {
  let device: Device;
  const use = async (): Promise<Device> => {
    device ??= await open();
    return device;
  };
  afterAll(() => device?.dispose());

  it("gives a row the hidden states of the end of one longer row", async () => {
    const on = await use();
    await fc.assert(
      fc.asyncProperty(drawn, async ({ seed, scale }) => {
        const pick = new TestRandom(seed, scale);
        const model = drawModel(pick);
        using decoder = randomDecoder(on, model);
        const batch = drawBatch(pick, model);
        const masked = pick.oneOf([batch, { ...batch, attentionMask: null }, paddedOnTheLeft(batch)]);
        const prefix = [...pick.ints(pick.int(1, 20), 0, model.vocabSize - 1)];
        // Chunks of a frozen block must not matter either.
        const chunkTokens = pick.int(1, 16);
        const streamOf = (of: LabeledBatch) =>
          on.scope(() => residualStream(decoder, null, decoder.prepare(of), { chunkTokens }));
        using long = streamOf(joined(prefix, masked));
        decoder.readPrefix(prefix);
        using short = streamOf(masked);
        const [expected, found] = [await long.read(), await short.read()];
        const d = model.hiddenSize;
        let largest = 0;
        for (let b = 0; b < batch.batchSize; b++) {
          for (let t = 0; t < batch.length; t++) {
            if (masked.attentionMask?.[b * batch.length + t] === 0) continue;
            const row = b * (prefix.length + batch.length) + prefix.length + t;
            for (let c = 0; c < d; c++) {
              const wanted = expected[row * d + c];
              const error = Math.abs(found[(b * batch.length + t) * d + c] - wanted) / (1 + Math.abs(wanted));
              largest = Math.max(largest, error);
            }
          }
        }
        expect(largest).toBeLessThan(1e-4);
      }),
      runs(20),
    );
    expect(on.memory.liveCount).toBe(0);
  });
});

describe("a prefix", () => {
  const pick = new TestRandom(3);
  const model = { ...drawModel(pick), vocabSize: 40, numHiddenLayers: 3, hiddenSize: 16 };
  const prefix = [4, 9, 22, 7, 13];

  it("precedes generated text, whatever the lengths of the prompts", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model, 3);
    const prompts = [[3, 5, 8], [7], [9, 1, 4, 4]];
    const drawn = { maxTokens: 8, sampling: { temperature: 3, seed: 1 } };
    const wanted: number[][] = [];
    for (const [firstStream, prompt] of prompts.entries())
      wanted.push(await generate(decoder, null, [...prefix, ...prompt], { ...drawn, firstStream }));
    expect(new Set(wanted.flat()).size).toBeGreaterThan(6); // it does not say the same whatever it reads
    expect(await generateBatch(decoder, null, prompts, drawn)).not.toEqual(wanted);
    decoder.readPrefix(prefix);
    expect(await generateBatch(decoder, null, prompts, drawn)).toEqual(wanted);
    decoder.readPrefix([]);
    expect(await generate(decoder, null, [...prefix, ...prompts[0]], drawn)).toEqual(wanted[0]);
  });

  it("precedes the questions of an evaluation", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model, 3);
    const items = [
      { prompt: [3, 5, 8, 2], continuations: [[7, 1], [4]] },
      { prompt: [9], continuations: [[1, 2, 3], [6]] },
    ];
    const scoresOf = async (before: readonly number[]) => {
      const asked = items.map((item) => ({ ...item, prompt: [...before, ...item.prompt] }));
      const [scores] = await scoreContinuations(decoder, [null], asked, { batchSize: 2 });
      return scores.flatMap(({ continuations }) => continuations);
    };
    const [wanted, without] = [await scoresOf(prefix), await scoresOf([])];
    decoder.readPrefix(prefix);
    const found = await scoresOf([]);
    for (const [i, score] of found.entries()) expect(score).toBeCloseTo(wanted[i], 4);
    expect(Math.abs(found[0] - without[0])).toBeGreaterThan(0.01);
  });

  it("is read by the model alone: a side network sees the states of its rows", async () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model, 3);
    const sizes = drawSide(new TestRandom(5), model);
    using side = SideNetwork.initialize(device, sizes, model);
    const batch = drawBatch(new TestRandom(8), model);
    const { batchSize, length } = batch;
    const statesOf = () => {
      const states: number[][] = [];
      const onSideState = (k: number, { shape }: Tensor) => states.push([k, ...shape]);
      device.scope(() => void residualStream(decoder, side, decoder.prepare(batch), { onSideState }));
      return states;
    };
    const wanted = Array.from({ length: sizes.num_hidden_layers }, (_, i) => [
      i + 1,
      batchSize,
      length,
      sizes.hidden_size,
    ]);
    expect(statesOf()).toEqual(wanted);
    decoder.readPrefix(prefix);
    expect(statesOf()).toEqual(wanted);
  });

  it("is refused where an adapter changes the blocks that read it", async () => {
    using decoder = randomDecoder(new CpuDevice(), model, 3);
    const batch = drawBatch(new TestRandom(8), model);
    for (const method of ["lora", "full", "ladder", "head"] as const) {
      decoder.readPrefix([]);
      using adapter = makeAdapter({ method }, decoder, "tiny");
      using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
      decoder.readPrefix(prefix);
      const calls = [
        () => trainer.step(batch),
        () => evaluateLoss(decoder, adapter, [batch]),
        () => generate(decoder, adapter, [1], { maxTokens: 1 }),
      ];
      for (const call of calls) {
        const refused = /L-METHOD.*the method changes these/;
        if (method === "lora" || method === "full") await expect(call()).rejects.toThrow(refused);
        else await call();
      }
    }
  });

  it("holds two vectors per token, layer and key head until it is replaced", () => {
    const device = new MetaDevice();
    using decoder = randomDecoder(device, model, 3);
    const before = device.memory.liveBytes;
    const bytesOf = (tokens: number) => {
      const part = 16 * Math.ceil((4 * tokens * model.numKeyValueHeads * model.headDim) / 16);
      return 2 * model.numHiddenLayers * part;
    };
    decoder.readPrefix(prefix);
    expect(device.memory.liveBytes - before).toBe(bytesOf(prefix.length));
    decoder.readPrefix(Array(40).fill(1));
    expect(device.memory.liveBytes - before).toBe(bytesOf(40));
    decoder.readPrefix([]);
    expect(device.memory.liveBytes).toBe(before);
  });

  it("takes its tokens from the model's context, and refuses what does not fit", () => {
    const device = new CpuDevice();
    using decoder = randomDecoder(device, model, 3); // 64 positions
    const before = device.memory.liveCount;
    expect(() => decoder.readPrefix(Array(64).fill(1))).toThrow(
      /L-CONTEXT.*prefix of 64 tokens leaves nothing.*64/,
    );
    expect(() => decoder.readPrefix([1, 40])).toThrow(/L-TOKEN.*40/);
    expect(device.memory.liveCount).toBe(before);
    const given = [...prefix];
    decoder.readPrefix(given);
    given[0] = 1; // it keeps what it has read
    expect(decoder.contextLimit).toBe(59);
    expect(() => decoder.readPrefix([1, 40])).toThrow(/L-TOKEN/);
    expect(decoder.prefixIds).toEqual(prefix); // the one before is kept
    const row = (length: number) => ({
      inputIds: Array(length).fill(1),
      batchSize: 1,
      length,
      attentionMask: null,
    });
    expect(() => device.scope(() => void decoder.prepare(row(59)))).not.toThrow();
    expect(() => decoder.prepare(row(60))).toThrow(
      /L-CONTEXT.*60 tokens are more than the model.s context of 64 less a prefix of 5/,
    );
    expect(() => decoder.prepare({ ...row(2), segments: [0, 1] })).toThrow(/L-OPTION.*--pack-length/);
  });
});
