// Training loops of the user's own, and their mistakes: each is refused by name.
import { join } from "node:path";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import {
  BatchStream,
  dataPositionSchema,
  evaluateLoss,
  generate,
  inMemory,
  makeAdapter,
  makeBatch,
  newRunState,
  shiftLabels,
  Trainer,
  TrainingLoop,
} from "../src/index.ts";
import { Checkpoints, MetricsLog, readMetrics } from "../src/node/index.ts";
import { GatedBlock, config as own } from "./own-adapters.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const config = { ...drawModel(new TestRandom(3)), numHiddenLayers: 3 };

describe("a loop of one's own is refused", () => {
  it("over labels that are not as many as tokens", () => {
    expect([...shiftLabels([1, 2, 3, 4], 2, 2)]).toEqual([2, -100, 4, -100]);
    for (const labels of [[1, 2, 3], [1, 2, 3, 4, 5], []])
      expect(() => shiftLabels(labels, 2, 2)).toThrow(
        /L-LABELS\] there are \d labels for 2 rows of 2 tokens/,
      );
  });

  it("over batches that score nothing, and over none, in training and in evaluation", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = makeAdapter({ method: "head" }, decoder, "tiny");
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05 });
    const batch = drawBatch(new TestRandom(4), config);
    const unscored = {
      ...batch,
      labels: batch.labels.length ? new Int32Array(batch.labels.length).fill(-100) : [],
    };
    for (const batches of [[], [unscored]]) {
      await expect(trainer.step(batches)).rejects.toThrow(/L-NOTHING-TO-LEARN/);
      await expect(evaluateLoss(decoder, adapter, batches)).rejects.toThrow(/L-NOTHING-TO-LEARN/);
    }
    await expect(trainer.step([])).rejects.toThrow("there is no batch");
    expect(() => makeBatch([], 8)).toThrow(/L-DATA/);
  });

  it("for a number of rows or tokens at a time with which no step would end", () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    using adapter = makeAdapter({ method: "head" }, decoder, "tiny");
    for (const name of ["microBatchSize", "chunkTokens"])
      for (const count of [0, -1, 1.5, Number.NaN, Number.POSITIVE_INFINITY]) {
        const make = () => new Trainer(decoder, adapter, { learningRate: () => 0.05, [name]: count });
        expect(make).toThrow(`[L-OPTION] ${name} is ${count}`);
      }
  });

  it("for a number of new tokens that is none", async () => {
    using decoder = randomDecoder(new CpuDevice(), config);
    for (const maxTokens of [-1, 1.5, Number.NaN, undefined as unknown as number])
      await expect(generate(decoder, null, [3], { maxTokens })).rejects.toThrow(/L-OPTION\] maxTokens/);
    expect(await generate(decoder, null, [3], { maxTokens: 0 })).toEqual([]);
  });
});

it("a TrainingLoop of a method of one's own goes on from its checkpoint as if it had never stopped", async () => {
  using decoder = randomDecoder(new CpuDevice(), own);
  const ids = (i: number) => Array.from({ length: 6 }, (_, t) => (3 * i + 5 * t) % own.vocabSize);
  const records = Array.from({ length: 5 }, (_, i) => ({ inputIds: ids(i), labels: ids(i), source: "here" }));
  const run = async (folder: string, steps: number) => {
    using adapter = new GatedBlock(decoder);
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05 });
    const stream = new BatchStream(inMemory(records), { batchSize: 2, seed: 1, maxLength: 8 });
    const checkpoints = new Checkpoints(folder, 1);
    const restored = await checkpoints.restoreLatest(trainer);
    if (restored) stream.seek(dataPositionSchema.parse(restored.state.data));
    const start = { frozenEvalLoss: 0, initialEvalLoss: 0, sample: null };
    const path = join(folder, "metrics.jsonl");
    const log = await MetricsLog.open(path, await readMetrics(path));
    const parts = {
      trainer,
      stream,
      log,
      checkpoints,
      options: { steps, saveEvery: 2 },
      events: {},
      signal: null,
      evaluate: async () => ({ loss: 0, sample: null }),
    };
    const state = restored?.state ?? newRunState(start, "cpu", stream.position);
    expect(await new TrainingLoop(parts, state, restored !== null).run()).toBe("done");
    await log.close();
    return (await readMetrics(path)).map((line) => "loss" in line && line.loss);
  };
  const [whole, stopped] = [temporaryFolder(), temporaryFolder()];
  await run(stopped, 3);
  const losses = await run(stopped, 6);
  expect(losses).toHaveLength(6);
  expect(losses).toEqual(await run(whole, 6));
});

it("a TrainingLoop without a log, on a device of this thread, stops when a timer aborts its signal", async () => {
  using decoder = randomDecoder(new CpuDevice(), config);
  using adapter = makeAdapter({ method: "head" }, decoder, "tiny");
  using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.05 });
  const records = [{ inputIds: [1, 2, 3, 4], labels: [1, 2, 3, 4], source: "here" }];
  const stream = new BatchStream(inMemory(records), { batchSize: 1, seed: 1, maxLength: 8 });
  const abort = new AbortController();
  setTimeout(() => abort.abort());
  const parts = {
    trainer,
    stream,
    log: null,
    checkpoints: null,
    options: { steps: 2000 },
    events: {},
    signal: abort.signal,
    evaluate: async () => ({ loss: 0, sample: null }),
  };
  const start = { frozenEvalLoss: 0, initialEvalLoss: 0, sample: null };
  const loop = new TrainingLoop(parts, newRunState(start, "cpu", stream.position), false);
  expect(await loop.run()).toBe("signal");
  expect(loop.state.counters.step).toBeLessThan(2000);
});
