import { describe, expect, it } from "vitest";
import { scoredBytes, slidingWindows } from "../src/eval/perplexity.ts";
import { byteTokenizer, wordTokenizer } from "./tiny-tokenizer.ts";

const words = wordTokenizer();
/** As Llama 2's tokenizer, which puts BOS before a text. */
const afterBos = { ...words, bosId: 1, encode: (text: string) => [1, ...words.encode(text)] };

describe("the bytes that windows score", () => {
  it.each([
    ["a character of several tokens", byteTokenizer().tokenizer, "aé🙂中文 naïve café 🙂🙂 中中"],
    ["leading spaces of windows", wordTokenizer(), "aab ab ab ab é ab ab 🙂 ab ab ab"],
    ["a special token that is written out", byteTokenizer().tokenizer, "ab<|endoftext|>cdefg hijkl"],
    ["a text after BOS", afterBos, "ab ab é ab"],
  ])("add up to those of the text after its first token: %s", (_, tokenizer, text) => {
    const ids = tokenizer.encode(text);
    const firstText = ids[0] === tokenizer.bosId ? "" : tokenizer.decode(ids.slice(0, 1));
    const first = new TextEncoder().encode(firstText).length;
    const all = new TextEncoder().encode(text).length;
    for (const [context, stride] of [
      [8, 3],
      [5, 4],
      [64, 32],
    ]) {
      const counts = scoredBytes(ids, context, stride, tokenizer);
      expect(counts).toHaveLength(slidingWindows(ids, context, stride, "t").length);
      expect(counts.reduce((sum, count) => sum + count, 0)).toBe(all - first);
    }
  });
});
