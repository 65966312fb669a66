/** Generation that goes on with what an earlier call has read. */
import { CpuDevice, Random, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { expect, it, vi } from "vitest";
import { type Adapter, generate, generateBatch, KeptText, makeAdapter } from "../src/index.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

function drawn(seed: number, method: "ladder" | "lora" | null) {
  const model = { ...drawModel(new TestRandom(seed)), vocabSize: 40, numHiddenLayers: 2 };
  const decoder = randomDecoder(new CpuDevice(), model, seed);
  const adapter: Adapter | null = method && makeAdapter({ method, seed }, decoder, "tiny");
  for (const [stream, [, tensor]] of [...(adapter?.parameters ?? [])].entries())
    decoder.device.assign(tensor, new Random(seed, stream).normals(tensor.size, 0.3));
  const dispose = () => {
    adapter?.dispose();
    decoder.dispose();
  };
  return { decoder, adapter, [Symbol.dispose]: dispose };
}

const turns = fc.array(
  fc.record({
    /** Tokens of the text so far that the next prompt begins with. */
    shared: fc.oneof(fc.nat({ max: 20 }), fc.constant(Number.POSITIVE_INFINITY)),
    more: fc.array(fc.integer({ min: 0, max: 39 }), { maxLength: 5 }),
    maxTokens: fc.integer({ min: 0, max: 4 }),
    prefix: fc.constantFrom([], [], [1, 3]),
  }),
  { minLength: 2, maxLength: 5 },
);

it("a kept text gives what a whole prompt gives, reads only what is new, and leaves nothing behind", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.nat(500),
      fc.constantFrom("ladder", "lora", null),
      turns,
      async (seed, method, turns) => {
        using all = drawn(seed, method);
        const { decoder, adapter } = all;
        const { memory } = decoder.device;
        const prepare = vi.spyOn(decoder, "prepare");
        const live = memory.liveBytes;
        const kept = new KeptText();
        let [text, held, prefixOfText, capacity]: [number[], number, string, number] = [[], 0, "", 0];
        for (const { shared, more, maxTokens, prefix } of turns) {
          if (method !== "lora") decoder.readPrefix(prefix);
          const prefixed = decoder.prefixIds.join();
          const limit = decoder.contextLimit;
          const prompt = [...text.slice(0, shared), ...more];
          if (prompt.length === 0) prompt.push(7);
          prepare.mockClear();
          const ids = await generate(decoder, adapter, prompt, { maxTokens, kept });
          const before = text.slice(0, held);
          const isContinued =
            prefixed === prefixOfText && held < prompt.length && before.every((id, i) => id === prompt[i]);
          const needed = prompt.length + maxTokens;
          const isReused = isContinued && needed <= capacity;
          const same = isReused ? held : 0;
          if (!isReused) capacity = Math.max(needed, Math.min(2 * needed, limit));
          const lengths = prepare.mock.calls.map(([batch]) => batch.length);
          expect(lengths).toEqual(
            Array.from({ length: maxTokens }, (_, i) => (i ? 1 : prompt.length - same)),
          );
          expect(ids).toEqual(await generate(decoder, adapter, prompt, { maxTokens }));
          [text, prefixOfText] = [[...prompt, ...ids], prefixed];
          held = maxTokens === 0 ? same : text.length - 1;
        }
        kept.dispose();
        decoder.readPrefix([]);
        expect(memory.liveBytes).toBe(live);
      },
    ),
    { numRuns: 60, seed: 20260101 },
  );
});

it("a kept text belongs to one prompt, and to one model and adapter", async () => {
  using all = drawn(1, "ladder");
  const { decoder, adapter } = all;
  using kept = new KeptText();
  const call = generateBatch(decoder, adapter, [[1, 2], [3]], { maxTokens: 1, kept });
  await expect(call).rejects.toThrow(/L-OPTION\] the text of one prompt can be kept, and there are 2/);
  const prepare = vi.spyOn(decoder, "prepare");
  const text = [3, 1, 4, 1, 5];
  for (const own of [adapter, null, adapter]) {
    prepare.mockClear();
    const ids = await generate(decoder, own, text, { maxTokens: 3, kept });
    expect(prepare.mock.calls[0][0].length).toBe(text.length); // what the other kept is not its own
    expect(ids).toEqual(await generate(decoder, own, text, { maxTokens: 3 }));
    text.push(...ids, 9); // so that the next call goes on with what this one keeps
  }
});

it("what fails or is disposed of forgets the kept text and frees it", async () => {
  using all = drawn(2, "ladder");
  const { decoder, adapter } = all;
  const { memory } = decoder.device;
  const live = memory.liveBytes;
  using kept = new KeptText();
  const text = [1, 2, 3];
  const goOn = async () => {
    const ids = await generate(decoder, adapter, text, { maxTokens: 2, kept });
    expect(ids).toEqual(await generate(decoder, adapter, text, { maxTokens: 2 }));
    text.push(...ids, 9); // so that the next call goes on with what this one keeps
  };
  await goOn();
  const onToken = () => {
    throw new Error("not today");
  };
  const failing = generate(decoder, adapter, text, { maxTokens: 2, kept, onToken });
  await expect(failing).rejects.toThrow("not today");
  expect(memory.liveBytes).toBe(live);
  await goOn();
  kept.dispose();
  expect(memory.liveBytes).toBe(live);
  await goOn();
});
