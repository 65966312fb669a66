/** Scores of continuations and of windows: what is told on the way, many logits, and models that are not finite. */
import { CpuDevice, type Device, Random, TestRandom } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
import { scoreWindows, slidingWindows } from "../src/eval/perplexity.ts";
import { type ScoringItem, scoreContinuations } from "../src/eval/score-continuations.ts";
import { makeAdapter } from "../src/methods/method.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const open = (change: Partial<ModelConfig> = {}, device: Device = new CpuDevice()) =>
  randomDecoder(device, {
    ...drawModel(new TestRandom(2)),
    vocabSize: 40,
    numHiddenLayers: 1,
    maxPositionEmbeddings: 64,
    tieWordEmbeddings: false,
    ...change,
  });

it("prompts go together as many as a batch holds, and all are counted", async () => {
  using decoder = open();
  const items: ScoringItem[] = [1, 2, 3].map((id) => ({ prompt: [id], continuations: [[4, 5]] }));
  const done: number[][] = [];
  const onProgress = (...counts: number[]) => done.push(counts);
  await scoreContinuations(decoder, [null], items, { batchSize: 2, onProgress });
  expect(done).toEqual([
    [2, 3],
    [3, 3],
  ]);
});

it("no group is padded past the context by the longest continuation of any of its prompts", async () => {
  using decoder = open();
  const ids = (length: number) => Array.from({ length }, (_, i) => i % 40);
  const items: ScoringItem[] = [
    { prompt: ids(50), continuations: [[7]] },
    { prompt: ids(55), continuations: [ids(10)] }, // 64 tokens are read: the context
    { prompt: ids(55), continuations: [[7]] },
    { prompt: ids(60), continuations: [[7]] },
  ];
  const alone = await scoreContinuations(decoder, [null], items, { batchSize: 1 });
  expect(await scoreContinuations(decoder, [null], items, { batchSize: 4 })).toEqual(alone);
});

it("more logits than are held at a time are computed in parts", async () => {
  const model = {
    vocabSize: 2 ** 19,
    hiddenSize: 8,
    numAttentionHeads: 1,
    numKeyValueHeads: 1,
    tieWordEmbeddings: true,
  };
  using decoder = open(model, await openNodeWasm()); // 2 MiB of logits a token
  using adapter = makeAdapter({ method: "ladder", ladder: { width: 8, layers: 1 } }, decoder, "tiny");
  for (const [stream, [, tensor]] of [...adapter.parameters].entries())
    decoder.device.assign(tensor, new Random(1, stream).normals(tensor.size));
  const scoresOf = async (prompt: number[], rest: number[]) => {
    const item = { prompt, continuations: [rest] };
    const scores = await scoreContinuations(decoder, [adapter, null], [item], { batchSize: 1 });
    return scores.map(([{ continuations }]) => continuations[0]);
  };
  const ids = Array.from({ length: 18 }, (_, i) => i * 10_007);
  const [begin, end] = [ids.slice(0, 9), ids.slice(9)];
  const [first, second] = [await scoresOf([1], begin), await scoresOf([1, ...begin], end)];
  const whole = await scoresOf([1], ids);
  for (const [a, score] of whole.entries()) expect(score).toBeCloseTo(first[a] + second[a], 3);
  expect(Math.abs(whole[0] - whole[1])).toBeGreaterThan(0.1);
});

it("likelihoods that are not finite are refused", async () => {
  using decoder = open();
  const { device, config, weights } = decoder;
  const table = weights.get("model.embed_tokens.weight");
  const values = new Float32Array(table.size);
  values[12 * config.hiddenSize] = Number.NaN; // of one token
  device.scope(() => device.ops.accumulate(table, device.tensor(values, table.shape)));
  const score = (continuations: number[][]) =>
    scoreContinuations(decoder, [null], [{ prompt: [1], continuations }], { batchSize: 1 });
  await expect(score([[2], [12, 3]])).rejects.toThrow(/L-DIVERGED\].*likelihoods of answers are not finite/);
  expect(await score([[2], [3, 12]])).toHaveLength(1); // the last token is not read
  const after = [{ prompt: [1], continuations: [[2]], afterLead: [[3]] }];
  await expect(scoreContinuations(decoder, [null], after, { batchSize: 1, lead: [12] })).rejects.toThrow(
    /L-DIVERGED/,
  );
  const windows = slidingWindows([1, 2, 3, 4, 5, 6, 7, 8, 12, 9], 4, 2, "text");
  await expect(scoreWindows(decoder, [null], windows, { batchSize: 2 })).rejects.toThrow(
    /L-DIVERGED\].*the loss of text is not finite/,
  );
  expect(await scoreWindows(decoder, [null], windows.slice(0, 3), { batchSize: 2 })).toHaveLength(1);
});
