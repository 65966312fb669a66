// Adapters that leave the backbone's hidden states as they are share its passes in an evaluation.
import { type Device, Random, TestRandom } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { prepareEvaluation } from "../src/eval/evaluate.ts";
import { TASKS, type Task } from "../src/eval/tasks.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { sharedPasses } from "../src/methods/residual-stream.ts";
import type { LabeledBatch } from "../src/model/batch-loss.ts";
import type { Decoder } from "../src/model/decoder.ts";
import { evaluateLosses } from "../src/training/evaluate-loss.ts";
import { options, rows } from "./plain-evaluation.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

const { tokenizer } = byteTokenizer();
const LAYERS = 3;
/** Attention ops of a ladder's side network. */
const SIDE_LAYERS = 2;
const config = {
  ...drawModel(new TestRandom(5)),
  vocabSize: tokenizer.vocabSize,
  numHiddenLayers: LAYERS,
  hiddenSize: 16,
  maxPositionEmbeddings: 512,
};

let device: Device;
let decoder: Decoder;
let adapters: Record<"ladder" | "head" | "lora" | "own", Adapter>;

beforeAll(async () => {
  device = await openNodeWasm({ threads: 1 });
  decoder = randomDecoder(device, config, 5);
  const sizes = { ladder: { width: 8, layers: SIDE_LAYERS }, lora: { rank: 2 }, seed: 5 };
  const make = (method: "ladder" | "head" | "lora") => makeAdapter({ method, ...sizes }, decoder, "tiny");
  const [ladder, head, lora] = [make("ladder"), make("head"), make("lora")];
  for (const [, tensor] of [ladder, head, lora].flatMap(({ parameters }) => [...parameters])) {
    device.scope(() => {
      const values = new Random(5, tensor.size).normals(tensor.size, 0.1);
      device.ops.accumulate(tensor, device.tensor(values, tensor.shape));
    });
  }
  // One of the user's own: the ladder's network beside a backbone that starts from other embeddings.
  const own: Adapter = {
    method: "own",
    parameters: ladder.parameters,
    side: ladder.side ?? null,
    embed: (ops, _forward, h) => ops.scale(h, { factor: 1.5 }),
    dispose() {},
    [Symbol.dispose]() {},
  };
  adapters = { ladder, head, lora, own };
});

afterAll(() => {
  for (const adapter of Object.values(adapters)) adapter.dispose();
  decoder.dispose();
  device.dispose();
});

const QUESTIONS = [
  { question: "2+2?", choices: ["four", "5", "twenty two"], label: 0 },
  { question: "is it up?", choices: ["down", "up", "u"], label: 1 },
];
const CHOICES = rows(QUESTIONS);
const DATA: Record<Task, ReturnType<typeof rows>> = {
  loss: rows([{ prompt: "abc def", completion: " ghi" }, ...QUESTIONS]),
  perplexity: rows([{ text: "abc def ghi jkl mno pqr stu" }, { text: "short" }]),
  choice: CHOICES,
  boolq: CHOICES,
  arc: CHOICES,
  blimp: CHOICES,
  critic: rows([{ question: "1+1?", solution: "1+1=3\nx", label: 0, first_error_step: 0 }]),
  gsm8k: rows([{ question: "1+1?", answer: "#### 2" }]),
};
const evaluation = (task: Task) => prepareEvaluation(DATA[task], tokenizer, options({ task }));

/** The result of `body`, how many blocks ran, and the peak of memory. */
async function observed<T>(body: () => Promise<T>) {
  let blocks = 0;
  device.onOp = (name) => {
    if (name === "attention") blocks++;
  };
  device.memory.resetPeak();
  const live = device.memory.liveBytes;
  const result = await body();
  device.onOp = null;
  expect(device.memory.liveBytes).toBe(live);
  return { result, blocks, peakBytes: device.memory.peak(0).peakBytes };
}

describe("one pass over the backbone", () => {
  it.each(TASKS)("evaluates it alone and with a side network, bit for bit as two do: %s", async (task) => {
    const prepared = evaluation(task);
    const one = (adapter: Adapter | null) => observed(() => prepared.run(decoder, [adapter]));
    for (const adapter of Object.values(adapters)) {
      const [before, after] = [await one(null), await one(adapter)];
      const both = await observed(() => prepared.run(decoder, [null, adapter]));
      expect(both.result).toEqual([...before.result, ...after.result]);
      const shares = task !== "gsm8k" && (adapter === adapters.ladder || adapter === adapters.head);
      expect(both.blocks).toBe(shares ? after.blocks : before.blocks + after.blocks);
      // Beside the larger pass, the hidden states and the results of the other: here less than a page.
      expect(both.peakBytes).toBeLessThanOrEqual(Math.max(before.peakBytes, after.peakBytes) + 4096);
    }
  });

  it("gives the losses of several adapters, in their order", async () => {
    const batches: LabeledBatch[] = [1, 2].map((seed) => drawBatch(new TestRandom(seed), config));
    const { ladder, head, lora, own } = adapters;
    const all = [null, ladder, lora, head, null, own];
    const together = await observed(() => evaluateLosses(decoder, all, batches));
    const alone: number[] = [];
    for (const adapter of all) alone.push(...(await evaluateLosses(decoder, [adapter], batches)));
    expect(together.result).toEqual(alone);
    // Passes: alone and ladder; lora; head and alone; own.
    expect(together.blocks).toBe(batches.length * (4 * LAYERS + 2 * SIDE_LAYERS));
  });

  it("is not shared with an adapter that acts inside or before the blocks", () => {
    const { ladder, head, lora, own } = adapters;
    expect(sharedPasses([null, ladder, head])).toEqual([[null, ladder, head]]);
    expect(sharedPasses([null, lora])).toEqual([[null], [lora]]);
    expect(sharedPasses([own, null])).toEqual([[own], [null]]);
  });
});
