import fc from "fast-check";
import { expect, it } from "vitest";
import { TextStream } from "../src/generation/text-stream.ts";
import { wordTokenizer } from "./tiny-tokenizer.ts";

it("streamed text begins as it goes on after its prompt, of any length", () => {
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
