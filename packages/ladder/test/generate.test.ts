import { CpuDevice, Random, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { generate, generateBatch, type Sampling } from "../src/generation/generate.ts";
import { generateTexts } from "../src/generation/generate-text.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

/** A tiny model with an adapter that does something. */
function drawn(seed: number, method: "ladder" | "lora" | null, vocabSize = 40) {
  const device = new CpuDevice();
  const model = { ...drawModel(new TestRandom(seed)), vocabSize, numHiddenLayers: 2 };
  const decoder = randomDecoder(device, model, seed);
  const sizes = { ladder: { width: 8, layers: 2 }, lora: { rank: 2 }, seed };
  const adapter: Adapter | null = method && makeAdapter({ method, ...sizes }, decoder, "tiny");
  for (const [stream, [name, tensor]] of [...(adapter?.parameters ?? [])].entries()) {
    if (!/up\.weight|lora_B/.test(name)) continue;
    device.scope(() => {
      const values = new Random(seed, stream).normals(tensor.size, 0.3);
      device.ops.accumulate(tensor, device.tensor(values, tensor.shape));
    });
  }
  return {
    decoder,
    adapter,
    [Symbol.dispose]() {
      adapter?.dispose();
      decoder.dispose();
    },
  };
}

/** Greedy ids without any cache: the whole text is read again for each. */
async function plainGreedy({ decoder, adapter }: ReturnType<typeof drawn>, prompt: number[], count: number) {
  const ids = [...prompt];
  for (let i = 0; i < count; i++) {
    using next = decoder.device.scope(() => {
      const batch = { inputIds: ids, batchSize: 1, length: ids.length, attentionMask: null };
      const y = residualStream(decoder, adapter, decoder.prepare(batch));
      const logits = decoder.logits(decoder.device.ops, y, adapter?.head ?? undefined);
      return decoder.device.ops.argmax(logits);
    });
    ids.push((await next.read())[ids.length - 1]);
  }
  return ids.slice(prompt.length);
}

const PROMPTS = [[3, 5, 8], [7], [9, 1, 4, 4, 2, 6], [11, 12]];

describe("generation", () => {
  it.each(["ladder", "lora", null] as const)(
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
  });

  it("goes on for the others when some prompts are done", async () => {
    using parts = drawn(4, "ladder");
    const { decoder, adapter } = parts;
    const counts = [0, 0, 0, 0];
    const ends = [1, 5, 2, 3];
    const ids = await generateBatch(decoder, adapter, PROMPTS, {
      maxTokens: 7,
      onToken: (_, prompt) => counts[prompt]++,
      isDone: (prompt) => counts[prompt] === ends[prompt],
    });
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
    await expect(generate(decoder, null, [1], { maxTokens: 1.5 })).rejects.toThrow(
      /L-OPTION\] maxTokens is 1\.5/,
    );
    expect(await generateBatch(decoder, null, [], { maxTokens: 1 })).toEqual([]);
    expect(await generate(decoder, null, [1], { maxTokens: 64 })).toHaveLength(64);
  });
});

describe("generated text", () => {
  it("is streamed as it stands in the end, and ends before a stop string", async () => {
    const { tokenizer } = byteTokenizer();
    using parts = drawn(6, "ladder", tokenizer.vocabSize);
    const { decoder, adapter } = parts;
    const prompts = ["ab", "c", "xyz"].map((text) => tokenizer.encode(text));
    const sampling = { temperature: 1, seed: 1 };
    const run = async (stop: string[]) => {
      const streamed = ["", "", ""];
      const results = await generateTexts(decoder, adapter, tokenizer, prompts, {
        maxTokens: 24,
        sampling,
        stop,
        onText: (text, prompt) => {
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
