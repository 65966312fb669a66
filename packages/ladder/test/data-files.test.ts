import { truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { EncodedRecords, splitRecords } from "../src/data/encoded-records.ts";
import type { FieldMapping } from "../src/data/field-mapping.ts";
import { type RecordList, recordParser } from "../src/data/record-list.ts";
import { encodeRecord, encodingBy, parseRecord } from "../src/data/records.ts";
import { openRecords, readRecords } from "../src/node/data/record-store.ts";
import { ChatTemplate } from "../src/text/chat-template.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

const folder = temporaryFolder();

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

async function all(path: string, fields: FieldMapping = {}) {
  const records: { record: unknown; source: string }[] = [];
  for await (const { record, source } of readRecords(path, fields)) records.push({ record, source });
  return records;
}

const PARQUET = join(import.meta.dirname, "fixtures/records.parquet");

describe("a data file", () => {
  it("is JSON: an array, or an object with one", async () => {
    const wanted = [
      { record: { text: "a" }, source: "x.json, item 1" },
      { record: { text: "b" }, source: "x.json, item 2" },
    ];
    expect(await all(await file("x.json", '[{"text":"a"},{"text":"b"}]'))).toEqual(wanted);
    expect(await all(await file("x.json", '{"version":1,"data":[{"text":"a"},{"text":"b"}]}'))).toEqual(
      wanted,
    );
    await expect(all(await file("x.json", '{"a":[],"b":[]}'))).rejects.toThrow(/L-DATA.*holds 2 arrays/);
    await expect(all(await file("x.json", "[1,"))).rejects.toThrow(/L-DATA.*x\.json is not JSON/);
    expect(await all(await file("x.json", '\ufeff[{"text":"a"},{"text":"b"}]'))).toEqual(wanted);
    const large = await file("x.json", "[");
    await truncate(large, 2 ** 28 + 1);
    await expect(all(large)).rejects.toThrow(/L-DATA.*x\.json has more than 268435456 bytes/);
  });

  it("is a table, with quotes, line ends inside cells, and arrays written as JSON", async () => {
    const csv = await file("x.csv", '\ufefftext,id\n"a, ""b""\nc",1\n\nd,2\n');
    expect(await all(csv)).toEqual([
      { record: { text: 'a, "b"\nc' }, source: "x.csv, row 1" },
      { record: { text: "d" }, source: "x.csv, row 2" },
    ]);
    const tsv = await file("x.tsv", 'question\tchoices\tlabel\n1+1\t"[""2"",""3""]"\t1\n');
    expect((await all(tsv))[0].record).toEqual({ question: "1+1", choices: ["2", "3"], label: 1 });
    await expect(all(await file("x.csv", "a,b\n1,2,3\n"))).rejects.toThrow(/L-DATA.*as a table/);
    await expect(all(await file("x.csv", 'a\n"open\n'))).rejects.toThrow(/L-DATA.*as a table/);
  });

  it("is a table of any length, read in parts that may end within a character", async () => {
    const cells = Array.from({ length: 3 }, (_, i) => "x".repeat(i) + "🙂".repeat(30_000));
    const records = await all(await file("x.csv", `text\n${cells.join("\n")}\n`));
    expect(records.map(({ record }) => record)).toEqual(cells.map((text) => ({ text })));
  });

  it("is told by the end of its name in letters of either case", async () => {
    expect(await all(await file("X.CSV", "text\na\n"))).toEqual([
      { record: { text: "a" }, source: "X.CSV, row 1" },
    ]);
  });

  it("keeps cells that look like lists as text where no list is wanted, and quotes within cells", async () => {
    const csv = await file("x.csv", 'prompt,completion\n[1],"[2, 3]"\nsay "hi" to,them\n');
    expect((await all(csv)).map(({ record }) => record)).toEqual([
      { prompt: "[1]", completion: "[2, 3]" },
      { prompt: 'say "hi" to', completion: "them" },
    ]);
  });

  it("is refused when it is not UTF-8, and read as UTF-16 where a table says so", async () => {
    const latin = Buffer.from("text\ncaf\u00e9\n", "latin1");
    await expect(all(await file("x.csv", latin))).rejects.toThrow(/^\[L-DATA\] \S*x\.csv is not UTF-8/);
    await expect(all(await file("x.txt", latin))).rejects.toThrow(/L-DATA.*x\.txt is not UTF-8/);
    await expect(all(await file("x.jsonl", gzipSync("text")))).rejects.toThrow(
      /L-DATA.*x\.jsonl is compressed\. Decompress it.* name that ends in \.gz/,
    );
    const json = Buffer.from('[{"text":"caf\u00e9"}]', "latin1");
    await expect(all(await file("x.json", json))).rejects.toThrow(/L-DATA.*x\.json is not UTF-8/);
    const cut = Buffer.from("text\ncaf\u00e9").subarray(0, -1);
    await expect(all(await file("x.csv", cut))).rejects.toThrow(/^\[L-DATA\] \S*x\.csv is not UTF-8/);
    const wide = Buffer.from("\ufefftext\ncaf\u00e9\n", "utf16le");
    expect((await all(await file("x.tsv", wide)))[0].record).toEqual({ text: "caf\u00e9" });
  });

  it("is refused when two columns have one name, of which one would be lost", async () => {
    await expect(all(await file("x.csv", "text,id,text\na,b,c\n"))).rejects.toThrow(
      /L-DATA.*several columns "text"/,
    );
  });

  it("is refused when another separator than its name's separates the columns, as spreadsheets of some countries write it", async () => {
    await expect(all(await file("x.csv", "prompt;completion\na;b\n"))).rejects.toThrow(
      /L-DATA.*one column, "prompt;completion"\. .*separated by ";"\?/,
    );
    await expect(all(await file("x.tsv", "prompt,completion\na,b\n"))).rejects.toThrow(/separated by ","\?/);
    const named = await file("x.csv", '"text; whole",text\na,b\n');
    expect((await all(named)).map(({ record }) => record)).toEqual([{ text: "b" }]);
  });

  it("is Parquet, with lists and structs, over several row groups", async () => {
    const records = await all(PARQUET, { question: "question", choices: "choices", label: "label" });
    expect(records).toHaveLength(10);
    expect(records[9]).toEqual({
      record: { question: "What is 9 + 9? é🙂", choices: ["18", "19"], label: 0 },
      source: "records.parquet, row 10",
    });
    expect((await all(PARQUET, { messages: "messages" }))[3].record).toEqual({
      messages: [
        { role: "user", content: "3" },
        { role: "assistant", content: "6" },
      ],
    });
    const cut = join(folder, "cut.parquet");
    await writeFile(cut, await import("node:fs/promises").then(({ readFile }) => readFile(PARQUET)));
    await truncate(cut, 3000);
    await expect(all(cut)).rejects.toThrow(/L-DATA.*cut\.parquet cannot be read as Parquet/);
  });

  it("is plain text, in runs of whole paragraphs", async () => {
    const paragraphs = Array.from({ length: 12 }, (_, i) => `paragraph ${i} `.repeat(50).trim());
    const records = await all(await file("x.txt", `\n${paragraphs.join("\r\n\r\n")}\r\n`));
    expect(records.length).toBeGreaterThan(2);
    expect(records[0].source).toBe("x.txt, line 2");
    const texts = records.map(({ record }) => (record as { text: string }).text);
    expect(texts.join("\n\n")).toBe(paragraphs.join("\n\n"));
    expect(Math.max(...texts.map((text) => text.length))).toBeLessThan(3000);
  });

  it("is split within a paragraph only where that is very long, at the end of a line", async () => {
    const lines = Array.from({ length: 400 }, (_, i) => `line ${i} of a very long paragraph`);
    const records = await all(await file("x.txt", lines.join("\n")));
    const texts = records.map(({ record }) => (record as { text: string }).text);
    expect(texts.join("\n")).toBe(lines.join("\n"));
    expect(texts.map(({ length }) => Math.floor(length / 1000))).toEqual([8, 5]);
    expect(records[1].source).toBe(`x.txt, line ${1 + texts[0].split("\n").length}`);
  });

  it("keeps the indentation of a text's first line", async () => {
    const records = await all(await file("x.md", "\n    if x:\n        y\n\n"));
    expect(records[0].record).toEqual({ text: "    if x:\n        y" });
  });

  it("is told from one that holds something else on its lines", async () => {
    await expect(all(await file("x.jsonl", '["a","b"]\n'))).rejects.toThrow(
      /this one is an array\. A record is one JSON object/,
    );
    await expect(all(await file("x.json", '{"text":"a"}\n{"text":"b"}\n'))).rejects.toThrow(
      /one record a line \.jsonl/,
    );
    await expect(all(await file("x.csv", "text\n"))).rejects.toThrow(/no records\. Is it the right file/);
  });

  it("may name its fields otherwise, also within others", async () => {
    const path = await file("x.jsonl", '{"stem":"q","c":{"text":["a","b"]},"answerKey":"B","text":"no"}');
    const fields = { question: "stem", choices: "c.text", label: "answerKey" };
    expect((await all(path, fields))[0].record).toEqual({ question: "q", choices: ["a", "b"], label: 1 });
    await expect(all(path, { ...fields, label: "stem" })).rejects.toThrow(/L-RECORD.*x\.jsonl, line 1/);
  });

  it("may give its choices marks of their own, as ARC does: a label is the place of one of them", async () => {
    const fields = { choices: "choices.text", label: "answerKey" };
    const labelOf = async (label: string | number, marks: readonly unknown[]) => {
      const row = { question: "q", choices: { text: ["a", "b", "c"], label: marks }, answerKey: label };
      const [{ record }] = await all(await file("x.jsonl", JSON.stringify(row)), fields);
      return (record as { label: number }).label;
    };
    expect(await labelOf("2", ["1", "2", "3"])).toBe(1);
    expect(await labelOf("3", [1, 2, 3])).toBe(2);
    expect(await labelOf("B", ["A", "B", "C"])).toBe(1);
    expect(await labelOf("A", ["C", "B", "A"])).toBe(2);
    expect(await labelOf(0, ["A", "B", "C"])).toBe(0); // an index: it is no mark, and could be none
    await expect(labelOf(0, ["1", "2", "3"])).rejects.toThrow(/L-RECORD.*its label 0 is none/);
    await expect(labelOf("0", ["1", "2", "3"])).rejects.toThrow(/L-RECORD.*line 1: its label "0" is none/);
  });
});

describe("records on disk", () => {
  const record = fc.record({ text: fc.string({ unit: "binary", maxLength: 20 }) });

  it("are the same in any order as one by one, over several files", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(record, { minLength: 1, maxLength: 6 }),
        fc.array(record, { minLength: 1, maxLength: 6 }),
        async (first, second) => {
          const jsonl = await file(
            "a.jsonl",
            `\ufeff\n${first.map((one) => JSON.stringify(one)).join("\r\n\n")}`,
          );
          const json = await file("b.json", JSON.stringify(second));
          const store = await openRecords([jsonl, json], recordParser({}));
          expect(store.length).toBe(first.length + second.length);
          const wanted = [...(await all(jsonl)), ...(await all(json))];
          for (let i = store.length - 1; i >= 0; i--) expect(await store.get(i)).toEqual(wanted[i]);
          await store.close();
        },
      ),
      { numRuns: 40 },
    );
  });

  it("are checked when they are opened, and missed when the file shrinks", async () => {
    const bad = await file("bad.jsonl", '{"text":"a"}\n{"txt":"b"}\n');
    await expect(openRecords([bad], recordParser({}))).rejects.toThrow(/L-RECORD\] bad\.jsonl, line 2/);
    await expect(openRecords([join(folder, "none.jsonl")], recordParser({}))).rejects.toThrow(/L-DATA/);
    const path = await file("shrinks.jsonl", '{"text":"a"}\n{"text":"b"}\n');
    const store = await openRecords([path], recordParser({}));
    await truncate(path, 5);
    await expect(store.get(1)).rejects.toThrow(/L-DATA.*shorter/);
    await store.close();
  });

  it("are encoded when asked for, each the same every time", async () => {
    const texts = Array.from({ length: 50 }, (_, i) => "x".repeat(1 + (i % 7)));
    const path = await file("c.jsonl", texts.map((text) => JSON.stringify({ text })).join("\n"));
    const store = await openRecords([path], recordParser({}));
    const { tokenizer } = byteTokenizer();
    let calls = 0;
    const encoder = {
      encode: (text: string) => {
        calls++;
        return tokenizer.encode(text);
      },
    };
    const data = new EncodedRecords(store, encoder, { bosId: null, eosId: 2, maxLength: 99, cut: false });
    const once = await data.all();
    expect(await data.all()).toEqual(once);
    expect(calls).toBe(50);
    expect(once[3]).toMatchObject({ inputIds: [...tokenizer.encode("xxxx"), 2], source: "c.jsonl, line 4" });
    await store.close();
  });

  it("count once in the cache, however many ask for one at a time, and the longest unused leaves it", async () => {
    const tokens = new Array<number>(2 ** 20 + 1).fill(3); // four of them are more than the cache holds, three are not
    let calls = 0;
    const encoder = {
      encode: () => {
        calls++;
        return tokens;
      },
    };
    const list = { length: 4, get: async (i: number) => ({ record: { text: "x" }, source: `${i}` }) };
    const options = { bosId: null, eosId: null, maxLength: 2 ** 21, cut: false };
    const data = new EncodedRecords(list, encoder, options);
    await Promise.all([data.get(0), data.get(0)]); // both before either is there
    const callsFor = async (...indices: number[]): Promise<number> => {
      calls = 0;
      for (const i of indices) await data.get(i);
      return calls;
    };
    expect(await callsFor(1, 2)).toBe(2);
    expect(await callsFor(1, 2, 0)).toBe(0);
    expect(await callsFor(3)).toBe(1);
    expect(await callsFor(2, 0, 3)).toBe(0);
    expect(await callsFor(1)).toBe(1);
  });

  it("split into parts without a record in common, by number or by share", async () => {
    const list = {
      length: 40,
      get: async (i: number) => ({ record: { text: String(i) }, source: String(i) }),
    };
    const ids = async (part: RecordList) =>
      Promise.all(Array.from({ length: part.length }, async (_, i) => Number((await part.get(i)).source)));
    const last = splitRecords(list, { amount: 3, isShare: false }, 0);
    expect(await ids(last.heldOut)).toEqual([37, 38, 39]);
    const share = splitRecords(list, { amount: 0.25, isShare: true }, 1);
    const [train, held] = [await ids(share.train), await ids(share.heldOut)];
    expect(held).toHaveLength(10);
    expect([...train, ...held].sort((a, b) => a - b)).toEqual(Array.from({ length: 40 }, (_, i) => i));
    expect(await ids(splitRecords(list, { amount: 0.25, isShare: true }, 1).heldOut)).toEqual(held);
    expect(await ids(splitRecords(list, { amount: 0.25, isShare: true }, 2).heldOut)).not.toEqual(held);
    for (const amount of [0, 40])
      expect(() => splitRecords(list, { amount, isShare: false }, 0)).toThrow(/L-DATA.*--held-out/);
  });
});

describe("a conversation", () => {
  const { tokenizer } = byteTokenizer();
  const chat = new ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role[:1] }}{{ m.content }}<|im_end|>\n{% endfor %}" +
      "{% if add_generation_prompt %}<|im_start|>a{% endif %}",
    {},
    "m",
  );
  const options = { bosId: 1, eosId: 2, maxLength: 100, cut: false, chat };
  const learned = (value: unknown, change: object = {}) => {
    const { inputIds, labels } = encodeRecord(parseRecord(value, "s"), "s", tokenizer, {
      ...options,
      ...change,
    });
    expect(labels.every((label, i) => label === -100 || label === inputIds[i])).toBe(true);
    return { all: tokenizer.decode(inputIds), learned: tokenizer.decode(labels.filter((id) => id !== -100)) };
  };
  const turns = (...contents: string[]) => ({
    messages: contents.map((content, i) => ({ role: i % 2 ? "assistant" : "user", content })),
  });

  it("is learned where the assistant speaks, with the end of its turn and nothing after", () => {
    expect(learned(turns("u", "v", "w", "x"))).toEqual({
      all: "<|im_start|>uu<|im_end|>\n<|im_start|>av<|im_end|>\n<|im_start|>uw<|im_end|>\n<|im_start|>ax<|im_end|>\n",
      learned: "v<|im_end|>x<|im_end|>",
    });
  });

  it("is not learned where an answer has the weight 0", () => {
    const { messages } = turns("u", "v", "w", "x");
    const weighted = (...weights: unknown[]) => ({
      messages: messages.map((turn, i) => (i % 2 ? { ...turn, weight: weights[(i - 1) / 2] } : turn)),
    });
    expect(learned(weighted(0, 1))).toEqual({ ...learned({ messages }), learned: "x<|im_end|>" });
    expect(learned(weighted(1, 0)).learned).toBe("v<|im_end|>");
    expect(learned(weighted(null, 1)).learned).toBe("v<|im_end|>x<|im_end|>");
    expect(() => learned(weighted(0, 0))).toThrow("L-NOTHING-TO-LEARN");
    expect(() => learned(weighted(1, 0.5))).toThrow(/L-RECORD.*found: item 4 has a weight other than 0 /);
  });

  it("ends at any of the ids at which the model stops", () => {
    const other = new ChatTemplate(
      "{% for m in messages %}{{ m.content }}<|endoftext|>\n{% endfor %}",
      {},
      "m",
    );
    const both = encodingBy({ ...tokenizer, eosIds: [2, 0], chatTemplate: () => other });
    expect(both).toMatchObject({ eosId: 2, endIds: [2, 0] });
    expect(learned(turns("u", "v"), both).learned).toBe("v<|endoftext|>");
    expect(learned(turns("u", "v"), { ...both, endIds: [2] }).learned).toBe("v<|endoftext|>\n");
  });

  it("comes of pairs and of choices when asked for", () => {
    const asChat = { asChat: true };
    expect(learned({ prompt: "p", completion: "c" }, asChat).learned).toBe("c<|im_end|>");
    const choice = { context: "K.", question: "q?", choices: ["no", "yes"], label: 1 };
    expect(learned(choice, asChat).all).toBe(
      "<|im_start|>uK.\nQuestion: q?<|im_end|>\n<|im_start|>ayes<|im_end|>\n",
    );
    expect(learned(choice)).toEqual({
      all: "<|im_start|>K.\nQuestion: q?\nAnswer: yes<|im_end|>",
      learned: " yes<|im_end|>",
    });
    const task = { instruction: "i", input: "n", output: "o" };
    expect(learned(task, asChat).all).toBe("<|im_start|>ui\n\nn<|im_end|>\n<|im_start|>ao<|im_end|>\n");
    expect(learned(task)).toEqual({ all: "<|im_start|>i\n\nn\n\no<|im_end|>", learned: "o<|im_end|>" });
    expect(learned({ instruction: "i", input: "", output: "o" }).all).toBe("<|im_start|>i\n\no<|im_end|>");
  });

  it("is refused where the template does not write calls of tools, which are then answers that say nothing", () => {
    const calling = (calls: object[]) => ({
      messages: [
        { role: "user", content: "u" },
        { role: "assistant", content: "", tool_calls: calls },
      ],
    });
    expect(() => learned(calling([{ name: "add" }]))).toThrow(
      /L-CHAT-TEMPLATE\] s: .*does not write "tool_calls"\. .*--chat-template/,
    );
    expect(learned(calling([])).learned).toBe("<|im_end|>"); // as some data sets have it on every turn
  });

  it("is refused by name where there is no template, or nobody to learn from", () => {
    expect(() => learned(turns("u", "v"), { chat: null })).toThrow(/L-CHAT-TEMPLATE\] s: .*--chat-template/);
    expect(() => learned(turns("u"))).toThrow(/L-NOTHING-TO-LEARN\] s: .*no answer of the assistant/);
    expect(() => learned(turns("u", "v"), { chat: new ChatTemplate("{{ 1 + none }}", {}, "m") })).toThrow(
      /L-CHAT-TEMPLATE\] s: m: the chat template refuses/,
    );
    const odd = [...turns("u", "v").messages, { role: "user", content: 12 }];
    expect(() => parseRecord({ messages: odd }, "s")).toThrow(
      /L-RECORD\] s: .*"messages" must be .*; found: item 3 is something else\./,
    );
    expect(() => parseRecord({ question: "q", choices: ["a"], label: 1 }, "s")).toThrow(/L-RECORD\] s/);
  });
});
