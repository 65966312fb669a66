import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import type { FieldMapping } from "../src/data/field-mapping.ts";
import { linesOf } from "../src/data/lines.ts";
import { type EncodeOptions, encodeRecord, encodeWindows, type TextRecord } from "../src/data/records.ts";
import { readRecords } from "../src/node/data/record-store.ts";
import { errorOf } from "./code-of.ts";

const folder = temporaryFolder();

async function readAll(content: string | Uint8Array, fields: FieldMapping = {}) {
  const path = join(folder, "data.jsonl");
  await writeFile(path, content);
  const all: { record: object; source: string }[] = [];
  for await (const item of readRecords(path, fields)) all.push(item);
  return all;
}

describe("a JSONL file", () => {
  const record = fc.oneof(
    fc.record({ text: fc.string({ unit: "binary" }) }),
    fc.record({
      prompt: fc.string({ unit: "binary" }),
      completion: fc.string({ unit: "binary" }),
      id: fc.integer(),
    }),
  );

  it("gives back its records, with the line each came from", async () => {
    const lines = fc
      .array(fc.option(record), { minLength: 1, maxLength: 8 })
      .filter((list) => list.some(Boolean));
    await fc.assert(
      fc.asyncProperty(
        lines,
        fc.constantFrom("\n", "\r\n"),
        fc.constantFrom("", "\ufeff"),
        async (list, end, mark) => {
          const found = await readAll(mark + list.map((one) => (one ? JSON.stringify(one) : "")).join(end));
          const expected = list.flatMap((one, i) => {
            const { id: _, ...fields } = { id: 0, ...one };
            return one ? [{ record: fields, source: `data.jsonl, line ${i + 1}` }] : [];
          });
          expect(found).toEqual(expected);
        },
      ),
    );
  });

  it("ends lines at a newline only", async () => {
    const found = await readAll('{"text":"a\u2028b\u2029c\u0085d"}\n{"text":"e"}');
    expect(found.map(({ record: { ...fields } }) => fields)).toEqual([
      { text: "a\u2028b\u2029c\u0085d" },
      { text: "e" },
    ]);
  });

  it("is read whole wherever its bytes are split between reads", async () => {
    const texts = Array.from({ length: 400 }, (_, i) => "é🙂".repeat(i));
    const found = await readAll(texts.map((text) => JSON.stringify({ text })).join("\n"));
    expect(found.map(({ record: fields }) => fields)).toEqual(texts.map((text) => ({ text })));
  });

  it("is of the first kind that it fits, and of that alone: other fields may hold anything", async () => {
    const others = {
      prompt: null,
      completion: null,
      messages: null,
      question: "q",
      choices: "none",
      label: 0,
    };
    const [text, pair] = await readAll(
      `${JSON.stringify({ ...others, text: "a" })}\n${JSON.stringify({ text: "a", prompt: "p", completion: "c", messages: [] })}`,
    );
    expect(text.record).toEqual({ text: "a" });
    expect(pair.record).toEqual({ prompt: "p", completion: "c" });
    const { labels } = encodeRecord(text.record as TextRecord, "x", encoder, options());
    expect(labels).toEqual([...encoder.encode("a"), 0]);
  });

  it("holds conversations as ShareGPT writes them, and content in parts", async () => {
    const said = [
      { from: "human", value: "a" },
      { from: "gpt", value: "b" },
    ];
    const read = async (row: object, fields: FieldMapping = {}) =>
      (await readAll(JSON.stringify(row), fields))[0].record;
    const messages = [
      { role: "user", content: "a" },
      { role: "assistant", content: "b" },
    ];
    const system = { role: "system", content: "s" };
    expect(await read({ id: "1", source: "web", conversations: said })).toEqual({ messages });
    expect(await read({ talk: said }, { messages: "talk" })).toEqual({ messages });
    expect(await read({ conversations: said, system: "s" })).toEqual({ messages: [system, ...messages] });
    expect(await read({ talk: said, system: "s" }, { messages: "talk" })).toEqual({
      messages: [system, ...messages],
    });
    expect(await read({ messages, system: "s" })).toEqual({ messages: [system, ...messages] });
    const own = { conversations: [{ from: "system", value: "s" }, ...said], system: "t" };
    expect(await read(own)).toEqual({ messages: [system, ...messages] });
    const parts = [
      { type: "text", text: "a" },
      { type: "text", text: " b" },
    ];
    const joined = await read({ messages: [{ role: "user", content: parts }], conversations: said });
    expect(joined).toEqual({ messages: [{ role: "user", content: "a b" }] });
  });

  it("holds tasks as Alpaca writes them", async () => {
    const rows = [
      { instruction: "Add.", input: "1 and 2", output: "3", text: "### all of it" },
      { instruction: "Add.", input: "", output: "3" },
      { instruction: "Add.", output: "3" },
    ];
    const found = await readAll(rows.map((row) => JSON.stringify(row)).join("\n"));
    const { text: _, ...task } = rows[0];
    expect(found.map(({ record: one }) => one)).toEqual([task, ...rows.slice(1)]);
  });

  it("may call its fields otherwise", async () => {
    const content = '{"question":"2+2","answer":"4"}';
    const [pair] = await readAll(content, { prompt: "question", completion: "answer" });
    expect(pair.record).toEqual({ prompt: "2+2", completion: "4" });
    expect((await errorOf(readAll(content, { text: "body" }))).code).toBe("L-RECORD");
  });

  it.each<[string, string | Uint8Array, string, RegExp]>([
    ["empty", "", "L-DATA", /no records/],
    ["blank", "\n  \n", "L-DATA", /no records/],
    ["a line that is no JSON", '{"text":"a"}\n\n{oops\n', "L-RECORD", /line 3 .*\{oops/],
    ["a line cut short", '{"text":"a"}\n{"text":"b', "L-RECORD", /line 2 /],
    [
      "a field of the wrong type",
      '{"text":5}',
      "L-RECORD",
      /line 1: its "text" must be a text; found: number/,
    ],
    ["a prompt alone", '{"text":"a"}\n{"prompt":"a"}', "L-RECORD", /line 2: .*prompt \(string\)/],
    [
      "turns of another name",
      '{"id":"1","source":"web","dialog":[{"speaker":"human","value":"a"}]}',
      "L-RECORD",
      /line 1: .*--map messages=dialog; each needs the fields role and content, or from and value/,
    ],
    [
      "a speaker that is not known",
      '{"conversations":[{"from":"human","value":"a"},{"from":"function_call","value":"{}"}]}',
      "L-RECORD",
      /line 1: its "conversations" must be .*; found: item 2 is from "function_call", which is none of human, /,
    ],
    [
      "a turn with a picture",
      '{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"image_url"}]}]}',
      "L-RECORD",
      /line 1: its "messages" .*; found: item 1 has other content than text: "image_url"\./,
    ],
    [
      "a text that would be left out",
      '{"question":"a","hint":"b","answer":"c","n":1}',
      "L-RECORD",
      /line 1: .* --prompt question --completion answer \(or --text, --map\), which leaves out hint\./,
    ],
    ["a line that is no object", '"text"', "L-RECORD", /line 1: .*"text"/],
    ["not UTF-8", Uint8Array.of(0x22, 0xff, 0x22), "L-DATA", /UTF-8/],
  ])("%s is refused", async (_, content, code, message) => {
    const error = await errorOf(readAll(content));
    expect(error.code).toBe(code);
    expect(error.message).toMatch(message);
  });

  it("that is not there is refused", async () => {
    const read = async () => {
      for await (const _ of readRecords(join(folder, "none.jsonl"))) return;
    };
    expect((await errorOf(read())).message).toMatch(/L-DATA.*none\.jsonl/);
  });
});

/** One token a character. */
const encoder = { encode: (text: string) => Array.from(text, (letter) => letter.charCodeAt(0)) };
const options = (change: Partial<EncodeOptions> = {}): EncodeOptions => ({
  bosId: null,
  eosId: 0,
  maxLength: 100,
  cut: false,
  ...change,
});

describe("a record's tokens", () => {
  it("are learned after the prompt, and the end with them", () => {
    const [p, q, c] = [..."pqc"].map((letter) => letter.charCodeAt(0));
    const pair = encodeRecord({ prompt: "pq", completion: "c" }, "x", encoder, options({ bosId: 9 }));
    expect(pair.inputIds).toEqual([9, p, q, c, 0]);
    expect(pair.labels).toEqual([-100, -100, -100, c, 0]);
    const text = encodeRecord({ text: "pq" }, "x", encoder, options({ eosId: null }));
    expect(text).toEqual({ inputIds: [p, q], labels: [p, q], source: "x" });
  });

  it("are refused past the context, unless they may be cut", () => {
    const long = { text: "abcdef" };
    expect(() => encodeRecord(long, "x.jsonl, line 3", encoder, options({ maxLength: 6 }))).toThrow(
      /L-TOO-LONG\] x\.jsonl, line 3: 7 .*6/,
    );
    const cut = encodeRecord(long, "x", encoder, options({ maxLength: 6, cut: true }));
    expect([cut.inputIds.length, cut.labels.length]).toEqual([6, 6]);
  });

  it("may have more tokens than a call may have arguments", () => {
    const cut = encodeRecord(
      { text: "a".repeat(500_000) },
      "x",
      encoder,
      options({ maxLength: 6, cut: true }),
    );
    expect(cut.inputIds.length).toBe(6);
  });

  it("are refused when nothing of them is learned", () => {
    const nothing = { prompt: "abc", completion: "d" };
    expect(() => encodeRecord(nothing, "line 7", encoder, options({ maxLength: 3, cut: true }))).toThrow(
      /L-NOTHING-TO-LEARN\] line 7: its first 3 tokens .* token 4\. Raise --max-length/,
    );
    expect(() => encodeRecord({ text: "" }, "line 8", encoder, options())).toThrow(
      /L-NOTHING-TO-LEARN\] line 8: .*Remove/,
    );
  });
});

describe("a text in windows", () => {
  const encoder = { encode: (text: string) => [...text].map((character) => character.codePointAt(0)!) };

  it("has all of its tokens once, in order, but for a last one that would be alone", () => {
    const text = fc.string({ minLength: 2, maxLength: 60 });
    fc.assert(
      fc.property(text, fc.integer({ min: 2, max: 20 }), fc.boolean(), (content, maxLength, ends) => {
        const options = { bosId: null, eosId: ends ? 7 : null, maxLength, cut: true };
        const windows = encodeWindows({ text: content }, "here", encoder, options);
        const all = [...encoder.encode(content), ...(ends ? [7] : [])];
        const ids = windows.flatMap(({ inputIds }) => inputIds);
        expect(ids).toEqual(all.length % maxLength === 1 ? all.slice(0, -1) : all);
        for (const { inputIds, labels } of windows) {
          expect(labels).toEqual(inputIds);
          expect(inputIds.length).toBeGreaterThan(1);
          expect(inputIds.length).toBeLessThanOrEqual(maxLength);
        }
      }),
    );
  });

  it("is a record as ever where not all of it is learned", () => {
    const options = { bosId: 1, eosId: 2, maxLength: 8, cut: true };
    const pair = { prompt: "who? ", completion: "a fox, it seems", text: "no part of it" };
    expect(encodeWindows(pair, "here", encoder, options)).toEqual([
      encodeRecord(pair, "here", encoder, options),
    ]);
  });
});

it("lines are the same however the bytes of a file come", async () => {
  const collect = async (chunks: Iterable<Uint8Array>) => {
    const lines: unknown[] = [];
    for await (const line of linesOf(chunks, "x")) lines.push(line);
    return lines;
  };
  const cuts = fc.array(fc.nat(40), { maxLength: 5 });
  await fc.assert(
    fc.asyncProperty(
      fc.string({ unit: fc.constantFrom("\n", "a", "é", "𝛿"), maxLength: 20 }),
      cuts,
      async (text, at) => {
        const bytes = new TextEncoder().encode(text);
        const ends = [...at, bytes.length].sort((a, b) => a - b);
        const chunks = ends.map((end, i) => bytes.subarray(i === 0 ? 0 : ends[i - 1], end));
        const lines = await collect(chunks);
        expect(lines).toEqual(await collect([bytes]));
        expect(lines.map((line) => (line as { text: string }).text).join("\n")).toBe(text);
      },
    ),
  );
});
