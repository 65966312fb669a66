// What eval makes of texts and records, against a plain sum of log p over their tokens.
import { mkdtemp } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { encodeRecord, encodingBy, parseRecord } from "../src/data/records.ts";
import { type EvalOptions, prepareEvaluation } from "../src/eval/evaluate.ts";
import { slidingWindows } from "../src/eval/perplexity.ts";
import { evalRun } from "../src/node/eval-run.ts";
import { trainRun } from "../src/node/train-run.ts";
import { CHOICES, tokenizer } from "./eval-rows.ts";
import { drawn, options, plainLogProbabilities, rows, scoreOf, sum } from "./plain-evaluation.ts";
import { cpu, tinyOptions, writeTinyFiles } from "./tiny-run.ts";

describe("sliding windows", () => {
  it("score each token but the first once, with as much before it as they can", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 0, max: 60 }),
        fc.integer({ min: 2, max: 20 }),
        fc.integer({ min: 1, max: 19 }),
        (length, context, stride) => {
          fc.pre(stride < context);
          const ids = Array.from({ length }, (_, i) => i);
          const windows = slidingWindows(ids, context, stride, "x");
          const scored = windows.flatMap(({ labels }) => labels.filter((label) => label !== -100));
          expect(scored).toEqual(ids.slice(1));
          for (const { inputIds, labels } of windows) {
            expect(inputIds.length).toBeLessThanOrEqual(context);
            expect(labels[0]).toBe(-100);
            const first = labels.findIndex((label) => label !== -100);
            expect(first >= context - stride || inputIds[0] === 0).toBe(true);
          }
        },
      ),
    );
  });
});

describe("perplexity", () => {
  it("is that of a plain sum over the same windows, of texts apart and as one", async () => {
    using parts = drawn(3, "head");
    const { decoder, adapter } = parts;
    const texts = ["abc def ghi jkl mno pqr stu", "xé🙂 x", "short", ""];
    for (const joinTexts of [false, true]) {
      const evaluation = prepareEvaluation(
        rows(texts.map((text) => ({ text }))),
        tokenizer,
        options({ task: "perplexity", joinTexts, maxTokens: 36 }),
      );
      const done: number[][] = [];
      const [{ metrics }] = await evaluation.run(decoder, [adapter], (...counts) => done.push(counts));
      expect(done.at(-1)).toEqual([evaluation.count, evaluation.count]);
      expect(done).toHaveLength(Math.ceil(evaluation.count / 2));
      let [nats, count, left] = [0, 0, 36];
      for (const text of joinTexts ? [texts.join("\n\n")] : texts) {
        const ids = tokenizer.encode(text).slice(0, left);
        left -= ids.length;
        for (let t = 1; t < ids.length; t++) {
          // Windows begin at multiples of 8; the one that scores token t is the first that reaches it.
          const start = t < 16 ? 0 : 8 * Math.ceil((t + 1 - 16) / 8);
          nats -= (await plainLogProbabilities(decoder, adapter, ids.slice(start, t + 1))).at(-1)!;
          count++;
        }
      }
      expect(scoreOf(metrics, "nats_per_token")).toBeCloseTo(nats / count, 4);
      expect(scoreOf(metrics, "bits_per_byte")).toBeCloseTo(nats / Math.LN2 / count, 4); // a token is a byte
      expect(scoreOf(metrics, "perplexity") / Math.exp(nats / count)).toBeCloseTo(1, 4);
      expect(metrics[0].items.reduce((total, { bottom }) => total + bottom, 0)).toBe(count);
    }
  });

  it("is refused where nothing can be scored", async () => {
    const prepare = (values: object[], change: Partial<EvalOptions> = {}) =>
      prepareEvaluation(rows(values), tokenizer, options({ task: "perplexity", ...change }));
    expect(() => prepare([{ text: "a" }])).toThrow(/L-EVAL/);
    expect(() => prepare([{ text: "abc" }], { stride: 16 })).toThrow(/L-OPTION.*below 16/);
    expect(() => prepare([{ title: "abc" }])).toThrow(/L-RECORD\] line 1.*--map/);
    using parts = drawn(3);
    const run = (context: number) => prepare([{ text: "abc" }], { context }).run(parts.decoder, [null]);
    await expect(run(513)).rejects.toThrow(/L-OPTION\].*513.*context of 512/);
    expect(await run(512)).toHaveLength(1);
  });
});

describe("loss", () => {
  const values = [
    { prompt: "a prompt of some length", completion: " and its completion" },
    { text: "a text" },
    ...CHOICES,
    {
      messages: [1, 2].flatMap(() =>
        ["user", "assistant"].map((role) => ({ role, content: `I am ${role}` })),
      ),
    },
  ];

  it.each(["plain", "chat"] as const)(
    "is that of what train would learn, record by record: %s",
    async (template) => {
      using parts = drawn(5);
      const { decoder, adapter } = parts;
      const [{ metrics, predictions }] = await prepareEvaluation(
        rows(values),
        tokenizer,
        options({ task: "loss", template }),
      ).run(decoder, [adapter]);
      const encoding = { ...encodingBy(tokenizer), maxLength: 512, cut: false, asChat: template === "chat" };
      let [all, count] = [0, 0];
      for (const [i, { value, source }] of rows(values).entries()) {
        const { inputIds, labels } = encodeRecord(parseRecord(value, source), source, tokenizer, encoding);
        const each = await plainLogProbabilities(decoder, adapter, inputIds);
        const learned = each.filter((_, t) => labels[t + 1] !== -100);
        const nats = -sum(learned);
        expect(predictions[i]).toEqual({ source, nats: expect.closeTo(nats, 3), tokens: learned.length });
        all += nats;
        count += learned.length;
      }
      expect(scoreOf(metrics, "nats_per_token")).toBeCloseTo(all / count, 4);
      expect(scoreOf(metrics, "perplexity") / Math.exp(all / count)).toBeCloseTo(1, 4);
    },
  );

  it("is the loss that train reports of the same records, with the adapter and without", async () => {
    const folder = await mkdtemp(join(temporaryFolder(), "run-"));
    const files = await writeTinyFiles(folder);
    for (const method of ["ladder", "qlora"] as const) {
      const outputDir = join(folder, method);
      const run = { ...tinyOptions(files, outputDir, method), evalData: [files.more] };
      const trained = await trainRun(cpu(), run);
      const scored = await evalRun(cpu(), {
        ...options({ task: "loss" }),
        ...{ model: files.model, adapter: outputDir, dtype: "f32", quantize: "auto", chatTemplate: null },
        ...{
          context: null,
          stride: null,
          data: [files.more],
          fields: {},
          limit: null,
          seed: 0,
          predictions: null,
        },
      });
      expect(scored.before.nats_per_token.value).toBeCloseTo(trained.frozen_eval_loss!, 5);
      expect(scored.after?.nats_per_token.value).toBeCloseTo(trained.eval_loss!, 5);
      expect(trained.eval_loss).not.toBeCloseTo(trained.frozen_eval_loss!, 3);
    }
  });

  it("is refused by name for a record that is none, has nothing to learn, or does not fit", async () => {
    const prepare = (value: object) => prepareEvaluation(rows([value]), tokenizer, options({ task: "loss" }));
    expect(() => prepare({ title: "a" })).toThrow(/L-RECORD\] line 1/);
    expect(() => prepare({ messages: [{ role: "user", content: "a" }] })).toThrow(
      /L-NOTHING-TO-LEARN\] line 1/,
    );
    using parts = drawn(5);
    const long = { prompt: "a".repeat(500), completion: "b".repeat(12) };
    await expect(prepare(long).run(parts.decoder, [null])).rejects.toThrow(/L-CONTEXT\] line 1.*513 tokens/);
  });
});
