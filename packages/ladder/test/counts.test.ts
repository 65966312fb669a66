// What a page's inputs hold in place of a count (a text, NaN or 0 where it is empty) is refused before it is used.
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { expect, it } from "vitest";
import { BatchStream, inMemory } from "../src/data/batch-stream.ts";
import { inBatches, makeBatch } from "../src/data/batches.ts";
import { encodeRecord, encodeWindows } from "../src/data/records.ts";
import { generate } from "../src/generation/generate.ts";
import { plannedBatch } from "../src/training/plan.ts";
import { codeOf } from "./code-of.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const record = { inputIds: [1, 2, 3], labels: [1, 2, 3], source: "here" };
const encoder = { encode: (text: string) => Array.from(text, () => 7) };
const within = (maxLength: number) => ({ bosId: null, eosId: null, maxLength, cut: true });
const stream = (options: object) =>
  new BatchStream(inMemory([record]), { batchSize: 1, maxLength: 8, seed: 0, ...options });

const uses: Readonly<Record<string, (count: number) => unknown>> = {
  "the length of a record": (count) => encodeRecord({ text: "a text" }, "here", encoder, within(count)),
  "the length of windows": (count) => encodeWindows({ text: "a text" }, "here", encoder, within(count)),
  "the batch size of a stream": (batchSize) => stream({ batchSize }),
  "the length of a stream": (maxLength) => stream({ maxLength }),
  "the row length of a stream that packs": (count) => stream({ packLength: count ?? 0 }),
  "the length of a batch": (count) => makeBatch([record], count),
  "the size of batches": (count) => inBatches([record], count, 8),
  "the rows of a plan": (count) => plannedBatch(count, 8),
  "the context of a plan": (count) => plannedBatch(1, count),
};

it.each(Object.entries(uses))("%s is a whole number above 0", (_, use) => {
  for (const count of [0, -1, 1.5, Number.NaN, undefined, "", "8"])
    expect(() => use(count as number), String(count)).toThrow("[L-OPTION]");
  expect(() => use(8)).not.toThrow();
});

it("a text in place of a number is shown as one", () => {
  expect(() => plannedBatch("8" as unknown as number, 8)).toThrow(
    'batchSize is "8", wanted a whole number from 1 on',
  );
});

it("a number of new tokens may be 0, and is no text", async () => {
  using device = new CpuDevice();
  using decoder = randomDecoder(device, drawModel(new TestRandom(3)), 3);
  expect(await generate(decoder, null, [1], { maxTokens: 0 })).toEqual([]);
  expect(await codeOf(generate(decoder, null, [1], { maxTokens: "8" as unknown as number }))).toBe(
    "L-OPTION",
  );
});
