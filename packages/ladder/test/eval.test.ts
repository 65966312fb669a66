import { Random } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { type EvalOptions, prepareEvaluation } from "../src/eval/evaluate.ts";
import { finalNumber } from "../src/eval/final-number.ts";
import { estimate } from "../src/eval/intervals.ts";
import { scoreContinuations } from "../src/eval/score-continuations.ts";
import { generate } from "../src/generation/generate.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import type { Decoder } from "../src/model/decoder.ts";
import type { Tokenizer } from "../src/text/tokenizer.ts";
import { CHOICES, CRITIC, tokenizer } from "./eval-rows.ts";
import { drawn, options, plainLogProbabilities, rows, scoreOf, sum } from "./plain-evaluation.ts";

/** log p(continuation | prompt), as `plainLogProbabilities` has it. */
async function plainScore(
  decoder: Decoder,
  adapter: Adapter | null,
  prompt: readonly number[],
  rest: readonly number[],
) {
  const all = await plainLogProbabilities(decoder, adapter, [...prompt, ...rest]);
  return sum(all.slice(prompt.length - 1));
}

describe("the score of a continuation", () => {
  it.each(["ladder", "lora", "head"] as const)(
    "is its log-likelihood, however prompts go together: %s",
    async (method) => {
      using parts = drawn(2, method);
      const { decoder, adapter } = parts;
      const random = new Random(1);
      const ids = (least: number, most: number) =>
        Array.from({ length: least + random.below(most - least + 1) }, () =>
          random.below(tokenizer.vocabSize),
        );
      const items = Array.from({ length: 5 }, () => ({
        prompt: ids(1, 7),
        continuations: Array.from({ length: 1 + random.below(3) }, () => ids(1, 4)),
        afterLead: Array.from({ length: random.below(3) }, () => ids(1, 4)),
      }));
      const lead = ids(2, 3);
      const scoreOne = (one: Adapter | null, prompt: readonly number[], all: readonly number[][]) =>
        Promise.all(all.map((rest) => plainScore(decoder, one, prompt, rest)));
      const close = (values: readonly number[]) => values.map((value) => expect.closeTo(value, 4));
      const before = decoder.device.memory.liveBytes;
      for (const batchSize of [1, 3]) {
        const copiedBytes = batchSize === 1 ? 2 ** 28 : 1; // all continuations at a time, or one
        const adapters = [null, adapter];
        const all = await scoreContinuations(decoder, adapters, items, { batchSize, copiedBytes, lead });
        for (const [a, scores] of all.entries()) {
          const one = adapters[a];
          for (const [i, { prompt, continuations, afterLead }] of items.entries()) {
            expect(scores[i]).toEqual({
              continuations: close(await scoreOne(one, prompt, continuations)),
              afterLead: close(await scoreOne(one, [...prompt, ...lead], afterLead)),
            });
          }
        }
      }
      expect(decoder.device.memory.liveBytes).toBe(before);
    },
  );

  it("does not depend on what a longer prompt of its group would leave of the context", async () => {
    using parts = drawn(2);
    const { decoder } = parts;
    const prompt = (length: number) => Array.from({ length }, (_, i) => i % 200);
    const items = [
      { prompt: prompt(500), continuations: [prompt(13)] }, // 512 tokens are read: the model's context
      { prompt: prompt(510), continuations: [[7]] },
    ];
    const together = await scoreContinuations(decoder, [null], items, { batchSize: 2 });
    const alone = await scoreContinuations(decoder, [null], items, { batchSize: 1 });
    expect(together).toEqual(alone);
    const without = scoreContinuations(decoder, [null], [{ ...items[1], afterLead: [[3]] }], {
      batchSize: 1,
    });
    await expect(without).rejects.toThrow(/L-OPTION\].*lead/);
  });

  it("takes memory for as many copies of its prompt as there may be", async () => {
    using parts = drawn(2);
    const { decoder } = parts;
    const prompt = Array.from({ length: 300 }, (_, i) => i % 200);
    const items = [{ prompt, continuations: Array.from({ length: 40 }, (_, i) => [i, 3]) }];
    const peakOf = async (copiedBytes: number) => {
      decoder.device.memory.resetPeak();
      await scoreContinuations(decoder, [null], items, { batchSize: 1, copiedBytes });
      return decoder.device.memory.peak(0).peakBytes;
    };
    expect(await peakOf(1)).toBeLessThan((await peakOf(2 ** 28)) / 2);
  });
});

/** What `eval` documents as the prompt of a question with choices. */
const plainPrompt = ({ context, question }: { context?: string; question: string }) =>
  tokenizer.encode(`${context === undefined ? "" : `${context}\n`}Question: ${question}\nAnswer:`);

describe("multiple choice", () => {
  it("takes the likeliest choice, as it is and by byte", async () => {
    using parts = drawn(4);
    const { decoder, adapter } = parts;
    const done: number[][] = [];
    const [{ metrics, predictions }] = await prepareEvaluation(rows(CHOICES), tokenizer, options({})).run(
      decoder,
      [adapter],
      (...counts) => done.push(counts),
    );
    expect(done).toEqual([
      [2, 3],
      [3, 3],
    ]);
    let [right, rightByByte] = [0, 0];
    for (const [i, row] of CHOICES.entries()) {
      const scores: number[] = [];
      for (const choice of row.choices) {
        scores.push(await plainScore(decoder, adapter, plainPrompt(row), tokenizer.encode(` ${choice}`)));
      }
      const best = (values: number[]) => values.indexOf(Math.max(...values));
      right += Number(best(scores) === row.label);
      rightByByte += Number(best(scores.map((score, c) => score / row.choices[c].length)) === row.label);
      const found = predictions[i] as { log_likelihoods: number[] };
      for (const [c, score] of scores.entries()) expect(found.log_likelihoods[c]).toBeCloseTo(score, 3);
    }
    expect(scoreOf(metrics, "accuracy")).toBeCloseTo(right / 3);
    expect(scoreOf(metrics, "accuracy_normalized")).toBeCloseTo(rightByByte / 3);
  });

  it("asks in the chat template when told to, and judges BLiMP's sentences by themselves", async () => {
    using parts = drawn(5);
    const { decoder, adapter } = parts;
    const asked = `<|im_start|>user\nQuestion: up?<|im_end|>\n<|im_start|>assistant\n`;
    const [chat] = await prepareEvaluation(rows([CHOICES[2]]), tokenizer, options({ template: "chat" })).run(
      decoder,
      [adapter],
    );
    const [found] = chat.predictions as { log_likelihoods: number[] }[];
    for (const [c, choice] of ["down", "up"].entries()) {
      const score = await plainScore(decoder, adapter, tokenizer.encode(asked), tokenizer.encode(choice));
      expect(found.log_likelihoods[c]).toBeCloseTo(score, 3);
    }
    const [blimp] = await prepareEvaluation(rows([CHOICES[2]]), tokenizer, options({ task: "blimp" })).run(
      decoder,
      [adapter],
    );
    const [sentences] = blimp.predictions as { log_likelihoods: number[] }[];
    const start = tokenizer.eosIds[0];
    expect(sentences.log_likelihoods[1]).toBeCloseTo(
      await plainScore(decoder, adapter, [start], tokenizer.encode("up")),
      3,
    );
    const none: Tokenizer = { ...tokenizer, chatTemplate: () => null };
    expect(() => prepareEvaluation(rows(CHOICES), none, options({ template: "chat" }))).toThrow(
      /L-CHAT-TEMPLATE/,
    );
  });
});

describe("the critic task", () => {
  it("judges solutions, and finds the first wrong step where there is one and it is known", async () => {
    using parts = drawn(6);
    const { decoder, adapter } = parts;
    const [{ metrics, predictions }] = await prepareEvaluation(
      rows(CRITIC),
      tokenizer,
      options({ task: "critic" }),
    ).run(decoder, [adapter]);
    const lines = CRITIC[0].solution.split("\n").map((line, i) => `${i + 1}. ${line}\n`);
    const prompt = `Question: 1+1?\nSolution:\n${lines.join("")}Is the solution correct or incorrect?\nAnswer:`;
    const of = (rest: string, before = "", end: readonly number[] = []) =>
      plainScore(decoder, adapter, tokenizer.encode(prompt + before), [...tokenizer.encode(rest), ...end]);
    const [first] = predictions as { log_likelihoods: number[]; chosen_step: number | null }[];
    expect(first.log_likelihoods[0]).toBeCloseTo(await of(" incorrect"), 3);
    expect(first.log_likelihoods[1]).toBeCloseTo(await of(" correct"), 3);
    const lead = " incorrect\nFirst wrong step:";
    // 12 begins with 1, so that 1 is the likelier of the two unless the end counts.
    const byStep = await Promise.all(lines.map((_, i) => of(` ${i + 1}`, lead, tokenizer.eosIds)));
    expect(first.chosen_step).toBe(byStep.indexOf(Math.max(...byStep)));
    const counts = metrics.map((metric) => [metric.name, estimate(metric, 0).count]);
    expect(Object.fromEntries(counts)).toEqual({
      accuracy: 3,
      accuracy_of_incorrect: 2,
      accuracy_of_correct: 1,
      first_wrong_step: 1,
    });
    const judged = predictions as { chosen: number; label: number }[];
    expect(scoreOf(metrics, "accuracy")).toBeCloseTo(
      judged.filter(({ chosen, label }) => chosen === label).length / 3,
    );
  });
});

describe("a number that the model arrives at", () => {
  it("is taken from what the model writes, greedily, up to a stop", async () => {
    using parts = drawn(7);
    const { decoder, adapter } = parts;
    const row = { question: "1+1?", answer: "1+1=<<1+1=2>>2\n#### 2" };
    const longer = { ...row, question: "What is 1+1?" };
    const evaluation = prepareEvaluation(rows([longer, row, row]), tokenizer, options({ task: "gsm8k" }));
    const done: number[][] = [];
    const [{ metrics, predictions }] = await evaluation.run(decoder, [adapter], (...counts) =>
      done.push(counts),
    );
    expect(done).toEqual([
      [2, 3],
      [3, 3],
    ]);
    const prompt = tokenizer.encode("Question: 1+1?\nAnswer:");
    const ids = await generate(decoder, adapter, prompt, { maxTokens: 6, stopIds: tokenizer.eosIds });
    const text = tokenizer.decode(ids, { skipSpecial: true });
    expect(predictions[1]).toMatchObject({ text, final: 2, found: finalNumber(text) });
    expect(scoreOf(metrics, "exact_match")).toBe(finalNumber(text) === 2 ? 1 : 0);
    const numbers = (predictions as { found: number | null }[]).filter(({ found }) => found !== null);
    expect(scoreOf(metrics, "has_number")).toBe(numbers.length / 3);
    expect(scoreOf(metrics, "answer_tokens")).toBe(ids.length);
    expect(() =>
      prepareEvaluation(rows([{ question: "q", answer: "none" }]), tokenizer, options({ task: "gsm8k" })),
    ).toThrow(/L-RECORD\] line 1.*#### number/);
  });
});

describe("a row", () => {
  const LIMIT = 512; // the model's context
  const long = (tokens: number) => "x".repeat(tokens - plainPrompt({ question: "" }).length);
  const critic = (length: number) => ({ ...CRITIC[0], question: "x".repeat(length) });
  const criticTokens = (step: string) =>
    `Question: \nSolution:\n1. 1+1=3\n${step}Is the solution correct or incorrect?\nAnswer: incorrect\nFirst wrong step: 1`
      .length;

  // The last token of an answer is never read.
  it.each<[string, Partial<EvalOptions>, (over: number) => object]>([
    ["choice", {}, (over) => ({ question: long(LIMIT - 3 + over), choices: ["a", "bcd"], label: 0 })],
    ["gsm8k", { task: "gsm8k" }, (over) => ({ question: long(LIMIT - 5 + over), answer: "#### 2" })],
    [
      "critic",
      { task: "critic" },
      (over) => ({ ...critic(LIMIT - criticTokens("") + over), solution: "1+1=3" }),
    ],
  ])(
    "that fills the context is scored, and one token more refused before any is: %s",
    async (_, change, row) => {
      using parts = drawn(2);
      const run = async (over: number) => {
        const evaluation = prepareEvaluation(rows([row(-400), row(over)]), tokenizer, options(change));
        const done: number[] = [];
        await evaluation
          .run(parts.decoder, [null], (count) => done.push(count))
          .catch((error) => {
            expect(done).toEqual([]);
            throw error;
          });
        return done;
      };
      expect(await run(0)).toEqual([2]);
      await expect(run(1)).rejects.toThrow(/L-CONTEXT\] line 2: .*513 tokens/);
    },
  );
});
