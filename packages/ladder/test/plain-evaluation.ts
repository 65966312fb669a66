/** A tiny model to evaluate, and its scores computed plainly: one pass a text, no cache, no batch. */
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import type { Row } from "../src/data/rows.ts";
import type { EvalOptions } from "../src/eval/evaluate.ts";
import { estimate, type Metric } from "../src/eval/intervals.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import type { Decoder } from "../src/model/decoder.ts";
import { tokenizer } from "./eval-rows.ts";
import { disturb, drawModel, randomDecoder } from "./tiny-model.ts";

/** A tiny model over bytes, of one layer, with an adapter that does something. */
export function drawn(seed: number, method: "ladder" | "lora" | "head" = "ladder") {
  const device = new CpuDevice();
  const model = {
    ...drawModel(new TestRandom(seed)),
    vocabSize: tokenizer.vocabSize,
    numHiddenLayers: 1,
    hiddenSize: 16,
    maxPositionEmbeddings: 512,
  };
  const decoder = randomDecoder(device, model, seed);
  const sizes = { ladder: { width: 8, layers: 1 }, lora: { rank: 2 }, seed };
  const adapter = makeAdapter({ method, ...sizes }, decoder, "tiny");
  disturb(adapter, seed);
  return {
    decoder,
    adapter,
    [Symbol.dispose]() {
      adapter.dispose();
      decoder.dispose();
    },
  };
}

/** log p of every token of a text but the first, given all before it: one pass, no cache, softmax in double. */
export async function plainLogProbabilities(
  decoder: Decoder,
  adapter: Adapter | null,
  ids: readonly number[],
) {
  using all = decoder.device.scope(() => {
    const batch = { inputIds: ids, batchSize: 1, length: ids.length, attentionMask: null };
    const y = residualStream(decoder, adapter, decoder.prepare(batch));
    return decoder.logits(decoder.device.ops, y, adapter?.head ?? undefined);
  });
  const logits = await all.read();
  const V = decoder.config.vocabSize;
  return ids.slice(1).map((id, t) => {
    const row = Array.from(logits.slice(t * V, (t + 1) * V));
    return row[id] - Math.log(row.reduce((sum, logit) => sum + Math.exp(logit), 0));
  });
}

export const sum = (values: readonly number[]) => values.reduce((a, b) => a + b, 0);

export const options = (change: Partial<EvalOptions>): EvalOptions => ({
  task: "choice",
  template: "plain",
  batchSize: 2,
  context: 16,
  stride: 8,
  joinTexts: false,
  maxTokens: null,
  answerTokens: 6,
  ...change,
});
export const rows = (values: readonly object[]): Row[] =>
  values.map((value, i) => ({ value, source: `line ${i + 1}` }));
export const scoreOf = (metrics: readonly Metric[], name: string) =>
  estimate(metrics.find((metric) => metric.name === name)!, 0).value;
