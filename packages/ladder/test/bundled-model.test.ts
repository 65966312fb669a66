// The model that comes with the package: it loads by name, it is small, and it has learned what its card says.
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import type { Device } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { inBatches } from "../src/data/batches.ts";
import { generate } from "../src/generation/generate.ts";
import { Decoder } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { bundledModels } from "../src/node/bundled-configs.ts";
import { readRecords } from "../src/node/data/record-store.ts";
import { type ModelFiles, openModel } from "../src/node/open-model.ts";
import type { Tokenizer } from "../src/text/tokenizer.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";

const NAME = "tiny-books";
const SAMPLE = fileURLToPath(new URL("../../../examples/data/books-sample.jsonl", import.meta.url));
/** Nats per token on the sample, of texts that the model has not seen. */
const LOSS = 3.4; // 3.376 on WebAssembly

let device: Device;
let model: ModelFiles;
let tokenizer: Tokenizer;
const texts: string[] = [];
beforeAll(async () => {
  ({ device } = await openDevice("wasm"));
  model = await openModel(NAME);
  tokenizer = await model.tokenizer();
  for await (const { record } of readRecords(SAMPLE)) texts.push((record as { text: string }).text);
});
afterAll(async () => {
  await model.close();
  device.dispose();
});

const load = async () => new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
const wordsOf = (text: string) => text.toLowerCase().match(/[a-z]+/g) ?? [];

describe("the bundled model", () => {
  it("is found by its name alone and takes less than 3 MB of the package", async () => {
    expect(await bundledModels()).toEqual([NAME]);
    const { origin } = model;
    if (origin.kind !== "folder") throw new Error("wanted a folder");
    const names = [
      "config.json",
      "model.safetensors",
      "tokenizer.json",
      "tokenizer_config.json",
      "README.md",
    ];
    const sizes = await Promise.all(names.map(async (name) => (await stat(join(origin.folder, name))).size));
    expect(sizes.reduce((a, b) => a + b, 0)).toBeLessThan(3e6);
    expect(model.config.vocabSize).toBe(tokenizer.vocabSize);
    const { files } = JSON.parse(await readFile(new URL("../package.json", import.meta.url), "utf8"));
    expect(files).toContain("models");
    await expect(openModel("tiny-bokos")).rejects.toThrow(/L-MODEL-MISSING.*tiny-books/);
  });

  it("has a tokenizer that gives every text back", () => {
    for (const text of texts) expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
    fc.assert(
      fc.property(fc.string({ unit: "binary", maxLength: 80 }), (text) => {
        fc.pre(Buffer.from(text).toString() === text);
        expect(tokenizer.decode(tokenizer.encode(text))).toBe(text);
      }),
    );
  });

  it(`predicts books it has not read with a loss below ${LOSS}`, async () => {
    using decoder = await load();
    const records = texts.map((text) => {
      const inputIds = tokenizer.encode(text).slice(0, 256);
      return { inputIds, labels: inputIds, source: "sample" };
    });
    const loss = await evaluateLoss(decoder, null, inBatches(records, 8, 256));
    console.log(`loss on ${records.length} held-out pieces: ${loss.toFixed(4)}`);
    expect(loss).toBeLessThan(LOSS);
  });

  it("continues a sentence with words", async () => {
    using decoder = await load();
    const known = new Set(texts.flatMap(wordsOf));
    const written: string[] = [];
    for (const [seed, text] of texts.slice(0, 8).entries()) {
      const prompt = tokenizer.encode(text).slice(0, 24);
      const sampling = { temperature: 0.8, topP: 0.9, seed };
      const ids = await generate(decoder, null, prompt, {
        maxTokens: 64,
        stopIds: tokenizer.eosIds,
        sampling,
      });
      written.push(...wordsOf(tokenizer.decode(ids)).slice(1, -1)); // the ends may be parts of words
    }
    const share = written.filter((word) => known.has(word)).length / written.length;
    console.log(
      `${(100 * share).toFixed(1)} % of ${written.length} words; ${written.slice(0, 40).join(" ")}`,
    );
    expect(written.length).toBeGreaterThan(200);
    expect(share).toBeGreaterThan(0.9);
  });
});
