import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { SidenetError } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { memorySource } from "../src/formats/byte-source.ts";
import { type GgufFile, readGguf } from "../src/formats/gguf.ts";
import { tokenizerFilesFromGguf, tokenizerFromGguf } from "../src/formats/gguf-tokenizer.ts";
import { copiedVocabulary, vocabularyFields } from "../src/formats/gguf-vocabulary.ts";
import type { GgufFields } from "../src/formats/gguf-write.ts";
import { ggufTokenizer } from "../src/node/carry-tokenizer.ts";
import { mayHang, nestsRepetitions } from "../src/regular-expression.ts";
import { loadTokenizer } from "../src/text/tokenizer.ts";
import { buildGguf, numbers, strings } from "./gguf-builder.ts";
import { MODEL } from "./model-folder.ts";
import { BYTE_SYMBOLS } from "./tiny-tokenizer.ts";

const MERGES = ["h e", "l l", "he ll", "Ġ w", "1 2", "Ġ Ġ"];
const BYTES = [
  "<|end|>",
  "<|user|>",
  ...BYTE_SYMBOLS,
  ...MERGES.map((merge) => merge.replace(" ", "")),
  "[PAD264]",
];
const byteLevel = (pre: string): GgufFields => ({
  "tokenizer.ggml.model": { type: "string", value: "gpt2" },
  "tokenizer.ggml.pre": { type: "string", value: pre },
  "tokenizer.ggml.tokens": strings(BYTES),
  "tokenizer.ggml.token_type": numbers(
    "i32",
    BYTES.map((token, id) => (id === 0 ? 3 : id === 1 ? 4 : token.startsWith("[PAD") ? 5 : 1)),
  ),
  "tokenizer.ggml.merges": strings(MERGES),
  "tokenizer.ggml.eos_token_id": { type: "u32", value: 0 },
  "tokenizer.ggml.add_bos_token": { type: "bool", value: false },
  "tokenizer.ggml.add_eos_token": { type: "bool", value: false },
  "tokenizer.chat_template": { type: "string", value: "{{ messages }}" },
});

const hex = (byte: number) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
const PIECES = [
  "<unk>",
  "<s>",
  "</s>",
  ...Array.from({ length: 256 }, (_, byte) => hex(byte)),
  ..."▁ he ll ▁he hell ▁hell h e l".split(" "),
];
const sentencePiece: GgufFields = {
  "tokenizer.ggml.model": { type: "string", value: "llama" },
  "tokenizer.ggml.tokens": strings(PIECES),
  "tokenizer.ggml.scores": numbers(
    "f32",
    PIECES.map((_, id) => (id < 259 ? 0 : 258 - id)),
  ),
  "tokenizer.ggml.token_type": numbers(
    "i32",
    PIECES.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1)),
  ),
  "tokenizer.ggml.bos_token_id": { type: "u32", value: 1 },
  "tokenizer.ggml.eos_token_id": { type: "u32", value: 2 },
  "tokenizer.ggml.unknown_token_id": { type: "u32", value: 0 },
  "tokenizer.ggml.add_bos_token": { type: "bool", value: true },
};

const open = (fields: GgufFields): Promise<GgufFile> =>
  readGguf(memorySource(buildGguf({ metadata: fields }), "test.gguf"));

const TEXTS = ["hello hell, he  12  wé 🙂", " hell\n", "<|user|>hell<|end|>", "", "\u0000x"];

describe.each([
  ["smollm", byteLevel("smollm")],
  ["llama-bpe", byteLevel("llama-bpe")],
  ["qwen2", byteLevel("qwen2")],
  ["SentencePiece", sentencePiece],
] as const)("a vocabulary of the kind %s", (_, fields) => {
  it("becomes a tokenizer.json that cuts texts the same way, and comes back from it", async () => {
    const gguf = await open(fields);
    const original = tokenizerFromGguf(gguf);
    const { tokenizer, config } = JSON.parse(JSON.stringify(tokenizerFilesFromGguf(gguf)));
    const read = loadTokenizer(tokenizer, config);
    for (const text of TEXTS) expect(read.encode(text), text).toEqual(original.encode(text));
    const model = {
      ...MODEL,
      vocabSize: original.vocabSize,
      bosTokenId: original.bosId,
      eosTokenIds: [...original.eosIds],
      padTokenId: null,
    };
    const chatTemplate = (config.chat_template as string | undefined) ?? null;
    const made = await vocabularyFields({ tokenizer, config, chatTemplate }, model, "tokenizer.json");
    const again = await open(made);
    for (const text of TEXTS) {
      expect(tokenizerFromGguf(again).encode(text), text).toEqual(original.encode(text));
    }
    for (const key of ["tokens", "merges", "token_type", "eos_token_id", "add_bos_token"]) {
      const name = `tokenizer.ggml.${key}`;
      if (gguf.metadata.has(name)) expect(again.metadata.get(name), name).toEqual(gguf.metadata.get(name));
    }
    expect(again.metadata.get("tokenizer.chat_template")).toEqual(
      gguf.metadata.get("tokenizer.chat_template"),
    );
  });

  it("is copied from one GGUF file to another as it is", async () => {
    const gguf = await open(fields);
    expect((await open(copiedVocabulary(gguf))).metadata).toEqual(gguf.metadata);
  });
});

it("a GGUF file gets the default of several chat templates", async () => {
  const folder = temporaryFolder();
  const { tokenizer, config } = tokenizerFilesFromGguf(await open(byteLevel("gpt-2")));
  const chat_template = ["tools", "default"].map((name) => ({ name, template: `the ${name} one` }));
  await writeFile(join(folder, "tokenizer.json"), JSON.stringify(tokenizer));
  await writeFile(join(folder, "tokenizer_config.json"), JSON.stringify({ ...config, chat_template }));
  const files = { origin: { kind: "folder", folder } } as const;
  const { fields } = await ggufTokenizer(files, { ...MODEL, vocabSize: BYTES.length });
  expect(fields["tokenizer.chat_template"]).toEqual({ type: "string", value: "the default one" });
});

it("a tokenizer that a GGUF file cannot say is refused, not approximated", async () => {
  const { tokenizer, config } = JSON.parse(
    JSON.stringify(tokenizerFilesFromGguf(await open(byteLevel("gpt-2")))),
  );
  const model = { ...MODEL, vocabSize: BYTES.length };
  const code = async (json: unknown, vocabSize = model.vocabSize) =>
    vocabularyFields({ tokenizer: json, config, chatTemplate: null }, { ...model, vocabSize }, "t.json").then(
      () => "none",
      (error: SidenetError) => error.code,
    );
  expect(await code(tokenizer)).toBe("none");
  const split = { type: "Split", pattern: { Regex: "x" }, behavior: "Isolated", invert: false };
  expect(await code({ ...tokenizer, pre_tokenizer: split })).toBe("L-TOKENIZER-KIND");
  const lower = { type: "Lowercase" };
  expect(await code({ ...tokenizer, normalizer: lower })).toBe("L-TOKENIZER-KIND");
  expect(await code(tokenizer, 100)).toBe("L-TOKENIZER");
});

describe("an expression from a file", () => {
  it("is judged by what it repeats", () => {
    const fast = [
      "model\\.layers\\.\\d+\\.self_attn\\.(q|v)_proj",
      "(a+)b*",
      "[(*+]+",
      "\\(.*\\)*",
      "(?:ab)?c+",
      "(a|b){1}",
    ];
    for (const text of fast) expect([text, mayHang(text)]).toEqual([text, false]);
    const slow = ["(.*)*x", "(a+)+", "((a+)b)*", "(?:x{2,})+", "(a*){2,9}", "(.*)*(.*)*x"];
    for (const text of slow) expect([text, nestsRepetitions(text)]).toEqual([text, true]);
    expect(mayHang(".*a.*b.*c.*d.*e.*f")).toBe(true);
    expect(nestsRepetitions(".*a.*b.*c.*d.*e.*f")).toBe(false);
    expect(mayHang(")))(((")).toBe(false);
  });
});
