import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { StopMatcher, TextStream } from "../src/generation/text-stream.ts";
import type { Tokenizer } from "../src/text/tokenizer.ts";
import { byteTokenizer, wordTokenizer } from "./tiny-tokenizer.ts";

describe("text that comes id by id", () => {
  const streamed = (tokenizer: Tokenizer, ids: readonly number[], stream = new TextStream(tokenizer)) => {
    const parts = ids.map((id) => stream.push(id));
    return { parts, rest: stream.end() };
  };
  const sample = fc.string({ unit: "binary", maxLength: 30 });

  it("is the whole text in the end, and never a half character on the way", () => {
    const { tokenizer } = byteTokenizer();
    fc.assert(
      fc.property(sample, (text) => {
        const ids = tokenizer.encode(text);
        const { parts, rest } = streamed(tokenizer, ids);
        expect(parts.join("") + rest).toBe(tokenizer.decode(ids));
        if (!text.includes("\ufffd")) expect(parts.join("")).not.toContain("\ufffd");
      }),
    );
    const { parts } = streamed(tokenizer, tokenizer.encode("a🙂b"));
    expect(parts).toEqual(["a", "", "", "", "🙂", "b"]);
  });

  it("gives bytes that are no character at the end at the latest", () => {
    const { tokenizer } = byteTokenizer();
    const euro = tokenizer.encode("€");
    expect(streamed(tokenizer, euro.slice(0, 2))).toEqual({ parts: ["", ""], rest: "\ufffd" });
    expect(streamed(tokenizer, [...euro.slice(0, 1), ...tokenizer.encode("x")])).toEqual({
      parts: ["", "\ufffdx"],
      rest: "",
    });
  });

  it("may be followed by another text", () => {
    const tokenizer = wordTokenizer();
    const ids = tokenizer.encode("ab c é").slice(0, -1); // ends within é
    const stream = new TextStream(tokenizer);
    expect(streamed(tokenizer, ids, stream).rest).toBe("\ufffd");
    expect(streamed(tokenizer, ids, stream)).toEqual(streamed(tokenizer, ids));
    expect(stream.end()).toBe("");
  });

  it("keeps the blanks of a vocabulary that marks words", () => {
    const tokenizer = wordTokenizer();
    fc.assert(
      fc.property(fc.array(fc.constantFrom("ab", "c", " ", "é", "\n", "</s>")), (parts) => {
        const ids = tokenizer.encode(parts.join(""));
        const { parts: given, rest } = streamed(tokenizer, ids);
        expect(given.join("") + rest).toBe(tokenizer.decode(ids, { skipSpecial: true }));
      }),
    );
  });

  it("begins as it goes on after its prompt, of any length", () => {
    const tokenizer = wordTokenizer();
    const parts = fc.array(fc.constantFrom("ab", "c", " ", "\n"), { maxLength: 30 });
    fc.assert(
      fc.property(parts, fc.nat(30), (parts, at) => {
        const ids = tokenizer.encode(parts.join(""));
        const prompt = ids.slice(0, at);
        const stream = new TextStream(tokenizer, prompt);
        const text = ids.slice(at).map((id) => stream.push(id));
        expect([tokenizer.decode(prompt), ...text, stream.end()].join("")).toBe(tokenizer.decode(ids));
      }),
    );
  });
});

describe("stop strings", () => {
  const parts = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), maxLength: 4 }));
  const stops = fc.array(fc.string({ unit: fc.constantFrom("a", "b", "c"), minLength: 1, maxLength: 4 }), {
    maxLength: 3,
  });

  it("end the text at the first of them, however it comes in parts", () => {
    fc.assert(
      fc.property(parts, stops, (list, wanted) => {
        const matcher = new StopMatcher(wanted);
        const seen: string[] = [];
        for (const part of list) {
          seen.push(matcher.push(part));
          if (matcher.isStopped) break;
        }
        const text = seen.join("") + matcher.end();
        const whole = list.join("");
        const found = wanted.map((stop) => whole.indexOf(stop)).filter((at) => at >= 0);
        expect(matcher.isStopped).toBe(found.length > 0);
        // Parts beyond the one that holds a stop string may hold one that began earlier: only what was read is judged.
        const cut = wanted.map((stop) => text.indexOf(stop)).filter((at) => at >= 0);
        expect(cut).toEqual([]);
        expect(whole.startsWith(text)).toBe(true);
        if (found.length === 0) expect(text).toBe(whole);
      }),
    );
  });

  it("hold back no more than their own beginning", () => {
    const matcher = new StopMatcher(["\nQuestion:"]);
    const pushed = ["yes\nQu", "ite", "\n"].map((text) => matcher.push(text));
    expect([...pushed, matcher.end(), matcher.end()]).toEqual(["yes", "\nQuite", "", "\n", ""]);
  });

  it("are not empty, and let nothing through once found", () => {
    const matcher = new StopMatcher(["", "b"]);
    expect([matcher.push("a"), matcher.isStopped]).toEqual(["a", false]);
    expect([matcher.push("abc"), matcher.isStopped]).toEqual(["a", true]);
    expect([matcher.push("def"), matcher.end()]).toEqual(["", ""]);
  });
});
