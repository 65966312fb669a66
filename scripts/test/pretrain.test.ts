// Pretraining end to end on a corpus of a few sentences: tokenizer, tokens, training that goes on where it stopped.
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { loadTokenizer } from "@sidenet/ladder";
import type { Device } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { tokenizerJson, trainBpe } from "../../examples/pretrain/bpe.mjs";
import { windowsOf } from "../../examples/pretrain/corpus.mjs";
import { pretrain } from "../../examples/pretrain/run.mjs";
import { temporaryFolder } from "../test-folder.ts";

const END = "<|endoftext|>";
const SENTENCES = [
  "The fox ran over the hill, and the hound ran after the fox.",
  "Over the hill the hound lost the fox; the fox slept in the barn.",
  "In the barn the hound found the fox, and they ran over the hill again.",
];
const tokenizerOf = (texts: string[], size: number) => {
  const model = trainBpe(texts, size, [END]);
  return { model, tokenizer: loadTokenizer(tokenizerJson(model, [END]), { eos_token: END }) };
};

describe("byte-pair encoding", () => {
  it("gives every text back, whatever it was trained on", () => {
    const text = fc
      .string({ unit: "binary", maxLength: 60 })
      .filter((value) => Buffer.from(value).toString() === value);
    const property = fc.property(fc.array(text, { maxLength: 5 }), text, (texts, other) => {
      const { tokenizer } = tokenizerOf(texts, 300);
      for (const each of [...texts, other]) expect(tokenizer.decode(tokenizer.encode(each))).toBe(each);
    });
    fc.assert(property, { numRuns: 30 });
  });

  it("merges the most frequent pairs: the longer the vocabulary, the fewer tokens", () => {
    const lengths = [257, 265, 280, 290].map((size) => {
      const { model, tokenizer } = tokenizerOf(SENTENCES, size);
      expect(Object.keys(model.vocab).length).toBeLessThanOrEqual(size);
      return tokenizer.encode(SENTENCES.join(" ")).length;
    });
    expect(lengths[0]).toBe(SENTENCES.join(" ").length);
    for (let i = 1; i < lengths.length; i++) expect(lengths[i]).toBeLessThan(lengths[i - 1]);
    expect(tokenizerOf(SENTENCES, 290).model.vocab).toHaveProperty("Ġthe");
    expect(trainBpe(SENTENCES, 290, [END])).toEqual(trainBpe(SENTENCES, 290, [END]));
  });
});

describe("windowsOf", () => {
  it("shows every token within reach of a stride, and never one past the end", async () => {
    const tokens = Uint16Array.from({ length: 23 }, (_, i) => i);
    const windows = windowsOf(tokens, 8, 4);
    expect(windows.length).toBe(4);
    for (let i = 0; i < windows.length; i++)
      expect((await windows.get(i)).inputIds).toEqual(Array.from({ length: 8 }, (_, t) => 4 * i + t));
    expect(windowsOf(tokens, 24).length).toBe(0);
  });
});

describe("pretrain", () => {
  let device: Device;
  const folder = temporaryFolder();
  beforeAll(async () => {
    ({ device } = await openDevice("wasm"));
    const { model, tokenizer } = tokenizerOf(SENTENCES, 300);
    const put = (name: string, content: string | Uint8Array) => writeFile(join(folder, name), content);
    await put("tokenizer.json", JSON.stringify(tokenizerJson(model, [END])));
    await put("tokenizer_config.json", JSON.stringify({ eos_token: END }));
    const sizes = { vocab_size: tokenizer.vocabSize, hidden_size: 32, intermediate_size: 48 };
    const layers = {
      num_hidden_layers: 2,
      num_attention_heads: 2,
      tie_word_embeddings: true,
      pad_token_id: 0,
    };
    await put("config.json", JSON.stringify({ model_type: "llama", ...sizes, ...layers }));
    for (const [name, repeat] of [
      ["train", 20],
      ["dev", 2],
    ] as const) {
      const text = SENTENCES.join(" ").repeat(repeat);
      const ids = tokenizer.encode(text);
      await put(`${name}.u16`, new Uint8Array(Uint16Array.from(ids).buffer));
      await put(`${name}.json`, JSON.stringify({ tokens: ids.length, texts: 1, bytes: text.length }));
    }
  });
  afterAll(() => device.dispose());

  /** 160 steps. `onLine` sees the lines of the log. */
  const run = (name: string, { model = folder, onLine = (_: string): void => {} } = {}) =>
    pretrain(device, {
      corpus: folder,
      model,
      output: join(folder, name),
      minutes: null,
      tokens: 160 * 4 * 16,
      batchSize: 4,
      length: 16,
      learningRate: 1e-2,
      weightDecay: 0,
      warmup: 0.1,
      seed: 1,
      reportSeconds: 0, // every ten steps
      heldOutRows: 4,
      onLine,
    });

  it("learns a text by heart, and goes on where it stopped as if it had not", async () => {
    const loss = await run("whole");
    expect(loss).toBeLessThan(1); // chance is ln 290 = 5.7
    const log = (await readFile(join(folder, "whole", "log.jsonl"), "utf8")).trim().split("\n");
    expect(JSON.parse(log.at(-1)!)).toMatchObject({ sample: expect.stringContaining("Once upon a time") });

    const onLine = (line: string) => {
      if (line.includes('"step":80,')) throw new Error("killed");
    };
    const killed = run("parts", { onLine });
    await expect(killed).rejects.toThrow("killed");
    const lines: string[] = [];
    expect(await run("parts", { onLine: (line) => void lines.push(line) })).toBe(loss);
    expect(lines[0]).toContain("from step 70 on");
  });

  it("refuses a model for another vocabulary, and a corpus whose count of tokens is another", async () => {
    const config = JSON.parse(await readFile(join(folder, "config.json"), "utf8"));
    const model = join(folder, "larger");
    await mkdir(model);
    await writeFile(join(model, "config.json"), JSON.stringify({ ...config, vocab_size: 400 }));
    await expect(run("refused", { model })).rejects.toThrow(/vocab_size of 400, but the tokenizer/);
    await writeFile(join(folder, "train.json"), JSON.stringify({ tokens: 5, bytes: 5 }));
    await expect(run("refused")).rejects.toThrow("tokenize.mjs");
  });
});
