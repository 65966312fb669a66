import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { generate, generateBatch, type Sampling } from "../src/generation/generate.ts";
import { generateTexts } from "../src/generation/generate-text.ts";
import { ModelCache } from "../src/generation/model-cache.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { disturb, drawModel, randomDecoder } from "./tiny-model.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

/** A tiny model with an adapter that does something. */
function drawn(seed: number, method: "ladder" | "lora" | "head" | null, vocabSize = 40) {
  const device = new CpuDevice();
  const model = { ...drawModel(new TestRandom(seed)), vocabSize, numHiddenLayers: 2 };
  const decoder = randomDecoder(device, model, seed);
  const sizes = { ladder: { width: 8, layers: 2 }, lora: { rank: 2 }, seed };
  const adapter: Adapter | null = method && makeAdapter({ method, ...sizes }, decoder, "tiny");
  if (adapter) disturb(adapter, seed);
  return {
    decoder,
    adapter,
    [Symbol.dispose]() {
      adapter?.dispose();
      decoder.dispose();
    },
  };
}

/** Greedy ids without any cache: the whole text is read again for each. The penalty is for ids that occurred. */
async function plainGreedy(
  { decoder, adapter }: ReturnType<typeof drawn>,
  prompt: number[],
  count: number,
  penalty = 1,
) {
  const ids = [...prompt];
  for (let i = 0; i < count; i++) {
    using all = decoder.device.scope(() => {
      const batch = { inputIds: ids, batchSize: 1, length: ids.length, attentionMask: null };
      const y = residualStream(decoder, adapter, decoder.prepare(batch));
      return decoder.logits(decoder.device.ops, y, adapter?.head ?? undefined);
    });
    const next = [...(await all.read())].slice(-decoder.config.vocabSize);
    for (const id of new Set(ids)) next[id] *= next[id] > 0 ? 1 / penalty : penalty;
    ids.push(next.indexOf(Math.max(...next)));
  }
  return ids.slice(prompt.length);
}

const PROMPTS = [[3, 5, 8], [7], [9, 1, 4, 4, 2, 6], [11, 12]];

describe("generation", () => {
  it.each(["ladder", "lora", "head", null] as const)(
    "of several prompts is what each gives alone: %s",
    async (method) => {
      for (const seed of [1, 2]) {
        using parts = drawn(seed, method);
        const { decoder, adapter } = parts;
        const before = decoder.device.memory.liveBytes;
        const together = await generateBatch(decoder, adapter, PROMPTS, { maxTokens: 6 });
        expect(decoder.device.memory.liveBytes).toBe(before);
        for (const [i, prompt] of PROMPTS.entries()) {
          expect(together[i]).toEqual(await plainGreedy(parts, prompt, 6));
        }
      }
    },
  );

  it("draws for each prompt from a stream of its own, so the others do not matter", async () => {
    using parts = drawn(3, "ladder");
    const { decoder, adapter } = parts;
    const sampling: Sampling = { temperature: 1.5, topK: 20, repetitionPenalty: 1.2, seed: 5 };
    const options = { maxTokens: 8, sampling };
    const four = await generateBatch(decoder, adapter, PROMPTS, options);
    const two = await generateBatch(decoder, adapter, PROMPTS.slice(0, 2), options);
    expect(four.slice(0, 2)).toEqual(two);
    expect(await generate(decoder, adapter, PROMPTS[0], options)).toEqual(four[0]);
    const twins = await generateBatch(decoder, adapter, [[3], [3]], options);
    expect(twins[0]).not.toEqual(twins[1]);
    for (const firstStream of [0, 1, 2]) {
      const rest = { ...options, firstStream };
      const texts = await generateBatch(decoder, adapter, PROMPTS.slice(firstStream), rest);
      expect(texts).toEqual(four.slice(firstStream));
    }
  });

  it("makes what occurred in the prompt or the text less probable, if told to", async () => {
    for (const [seed, repetitionPenalty] of [
      [1, 1000],
      [2, 1.3],
      [3, undefined],
    ] as const) {
      using parts = drawn(seed, "ladder");
      const { decoder, adapter } = parts;
      const sampling = { temperature: 0, ...(repetitionPenalty && { repetitionPenalty }) };
      const texts = await generateBatch(decoder, adapter, PROMPTS.slice(0, 2), { maxTokens: 30, sampling });
      for (const [i, text] of texts.entries()) {
        expect(text).toEqual(await plainGreedy(parts, PROMPTS[i], 30, repetitionPenalty));
      }
    }
  });

  it("goes on for the others when some prompts are done", async () => {
    using parts = drawn(4, "ladder");
    const { decoder, adapter } = parts;
    const counts = [0, 0, 0, 0];
    const ends = [1, 5, 2, 3];
    let passes = 0;
    const { logits } = decoder;
    decoder.logits = (...args) => {
      passes++;
      return logits.apply(decoder, args);
    };
    const ids = await generateBatch(decoder, adapter, PROMPTS, {
      maxTokens: 7,
      onToken: (_, prompt) => counts[prompt]++,
      isDone: (prompt) => counts[prompt] === ends[prompt],
    });
    expect(passes).toBe(5); // none after the longest text has ended
    for (const [i, prompt] of PROMPTS.entries()) {
      expect(ids[i]).toEqual(await plainGreedy(parts, prompt, ends[i]));
    }
    const stopId = ids[1][2];
    const [stopped] = await generateBatch(decoder, adapter, [PROMPTS[1]], {
      maxTokens: 7,
      stopIds: [stopId],
    });
    expect(stopped).toEqual(ids[1].slice(0, ids[1].indexOf(stopId)));
  });

  it("refuses what cannot go on", async () => {
    using parts = drawn(1, null);
    const { decoder } = parts;
    await expect(generateBatch(decoder, null, [[1], []], { maxTokens: 1 })).rejects.toThrow(/L-PROMPT/);
    await expect(generate(decoder, null, [1, 2], { maxTokens: 64 })).rejects.toThrow(
      /L-CONTEXT\].*2 tokens.*64 new/,
    );
    await expect(generateBatch(decoder, null, [[1, 2], [1]], { maxTokens: 64 })).rejects.toThrow(
      /L-CONTEXT\].*2 tokens/,
    );
    await expect(generate(decoder, null, [1], { maxTokens: 65 })).rejects.toThrow(/L-OPTION\].*65 new/);
    for (const maxTokens of [1.5, -1]) {
      await expect(generate(decoder, null, [1], { maxTokens })).rejects.toThrow(
        `[L-OPTION] maxTokens is ${maxTokens}`,
      );
    }
    expect(await generate(decoder, null, [1], { maxTokens: 0 })).toEqual([]);
    expect(await generateBatch(decoder, null, [], { maxTokens: 1 })).toEqual([]);
    expect(await generate(decoder, null, [1], { maxTokens: 64 })).toHaveLength(64);
  });
});

it("a text whose logits are not finite ends generation, named by its prompt", async () => {
  using parts = drawn(4, null);
  const { decoder } = parts;
  const { device, config, weights } = decoder;
  const table = weights.get("model.embed_tokens.weight");
  const values = new Float32Array(table.size);
  values[12 * config.hiddenSize] = Number.NaN; // of a token that the last prompt alone has
  device.scope(() => device.ops.accumulate(table, device.tensor(values, table.shape)));
  await expect(generateBatch(decoder, null, PROMPTS, { maxTokens: 2 })).rejects.toThrow(
    /L-DIVERGED\].*after 2 tokens of prompt 4 are not finite/,
  );
  expect(await generateBatch(decoder, null, PROMPTS.slice(0, 3), { maxTokens: 2 })).toHaveLength(3);
});

it("caches take the memory that their rows say, and give it back", () => {
  using parts = drawn(1, "ladder");
  const { decoder, adapter } = parts;
  const { memory } = decoder.device;
  const before = memory.liveBytes;
  {
    using empty = ModelCache.empty(decoder, [null, adapter, adapter], 3, 10);
    expect(memory.liveBytes - before).toBe(3 * empty.rowBytes);
    using taken = empty.take([2, 0]);
    expect(memory.liveBytes - before).toBe(5 * taken.rowBytes);
  }
  expect(memory.liveBytes).toBe(before);
});

describe("generated text", () => {
  it("is streamed as it stands in the end, and ends before a stop string", async () => {
    const { tokenizer } = byteTokenizer();
    using parts = drawn(6, "ladder", tokenizer.vocabSize);
    const { decoder, adapter } = parts;
    const prompts = ["ab", "c", "xyz"].map((text) => tokenizer.encode(text));
    const sampling = { temperature: 1, seed: 1 };
    const run = async (stop: string[], eosIds = tokenizer.eosIds) => {
      const streamed = ["", "", ""];
      const results = await generateTexts(decoder, adapter, { ...tokenizer, eosIds }, prompts, {
        maxTokens: 24,
        sampling,
        stop,
        onText: (text, prompt) => {
          expect(text).not.toBe("");
          streamed[prompt] += text;
        },
      });
      expect(results.map(({ text }) => text)).toEqual(streamed);
      return results;
    };
    const free = await run([]);
    for (const { text, ids, stopped } of free) {
      expect(text).toBe(tokenizer.decode(ids, { skipSpecial: true }));
      expect(stopped).toBe(ids.length === 24 ? "max tokens" : "end of text");
    }
    const whole = free[0].text;
    const stop = whole.slice(5, 7);
    const [first] = await run([stop]);
    expect(first).toMatchObject({ text: whole.slice(0, whole.indexOf(stop)), stopped: "stop string" });
    expect(first.ids).toEqual(free[0].ids.slice(0, first.ids.length));
    expect(tokenizer.decode(first.ids.slice(0, -1)), "no token after the stop string").not.toContain(stop);
    const [unstopped] = await run([`${whole.slice(-1)}\n\n\n`]); // its beginning is the text's end
    expect(unstopped).toEqual(free[0]);
    for (const at of [0, 9]) {
      const { ids } = free[2];
      const [, , third] = await run([], [ids[at]]);
      expect(third).toMatchObject({ stopped: "end of text", ids: ids.slice(0, ids.indexOf(ids[at])) });
    }
  });

  it("ends at a signal, and says so only of the texts that were going on", async () => {
    const { tokenizer } = byteTokenizer();
    using parts = drawn(6, "ladder", tokenizer.vocabSize);
    const { decoder, adapter } = parts;
    const [a, b] = ["ab", "c"].map((text) => tokenizer.encode(text));
    const [{ text }] = await generateTexts(decoder, adapter, tokenizer, [a], { maxTokens: 8 });
    const abort = new AbortController();
    setTimeout(() => abort.abort()); // has its turn although the device computes in this thread
    const options = { maxTokens: 60, stop: [text.slice(0, 1)], signal: abort.signal };
    const [first, second] = await generateTexts(decoder, adapter, tokenizer, [a, b], options);
    expect([first.stopped, second.stopped]).toEqual(["stop string", "interrupted"]);
    expect(second.ids.length).toBeLessThan(60);
  });
});
