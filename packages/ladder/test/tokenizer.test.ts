import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { memorySource } from "../src/formats/byte-source.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { tokenizerFromGguf } from "../src/formats/gguf-tokenizer.ts";
import { loadTokenizer, startId, type Tokenizer } from "../src/text/tokenizer.ts";
import { codeOf } from "./code-of.ts";
import { buildGguf, type Field, numbers, strings } from "./gguf-builder.ts";
import { BYTE_SYMBOLS, byteTokenizer } from "./tiny-tokenizer.ts";

const SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
const MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2", "' s", "Ġ Ġ", "Ċ Ċ", "' S"];
const TOKENS = [...SPECIAL, ...BYTE_SYMBOLS, ...MERGES.map((merge) => merge.replace(" ", ""))];
const idOf = (token: string) => TOKENS.indexOf(token);

/** Metadata of a byte-level vocabulary of 270 tokens, the first three control tokens. */
function byteLevel(pre: string, more: Record<string, Field> = {}): Record<string, Field> {
  return {
    "tokenizer.ggml.model": { type: "string", value: "gpt2" },
    "tokenizer.ggml.pre": { type: "string", value: pre },
    "tokenizer.ggml.tokens": strings(TOKENS),
    "tokenizer.ggml.token_type": numbers(
      "i32",
      TOKENS.map((_, id) => (id < SPECIAL.length ? 3 : 1)),
    ),
    "tokenizer.ggml.merges": strings(MERGES),
    "tokenizer.ggml.bos_token_id": { type: "u32", value: 1 },
    "tokenizer.ggml.eos_token_id": { type: "u32", value: 2 },
    "tokenizer.ggml.eot_token_id": { type: "u32", value: 0 },
    ...more,
  };
}

async function tokenizerOf(metadata: Record<string, Field>): Promise<Tokenizer> {
  return tokenizerFromGguf(await readGguf(memorySource(buildGguf({ metadata }), "test.gguf")));
}

const text = fc.oneof(
  fc.string({ unit: "binary", maxLength: 40 }),
  fc.string({ unit: "grapheme", maxLength: 40 }),
  fc
    .array(fc.constantFrom("hello", " wo", "12", "'s", "'S", " ", "  ", "\n\n", "\t", "é", "🙂"))
    .map((parts) => parts.join("")),
);

describe("a byte-level tokenizer from GGUF metadata", () => {
  it.each(["smollm", "gpt-2", "llama-bpe"])("gives back any text (%s)", async (pre) => {
    const tokenizer = await tokenizerOf(byteLevel(pre));
    fc.assert(
      fc.property(text, (sample) => {
        const ids = tokenizer.encode(sample, { addSpecialTokens: false });
        expect(tokenizer.decode(ids)).toBe(sample);
      }),
    );
  });

  it("gives back any composed text where the model normalizes (qwen2)", async () => {
    const tokenizer = await tokenizerOf(byteLevel("qwen2"));
    fc.assert(
      fc.property(text, (sample) => {
        expect(tokenizer.decode(tokenizer.encode(sample))).toBe(sample.normalize("NFC"));
      }),
    );
  });

  it("merges in the order of its list, within what the pre-tokenizer keeps together", async () => {
    const encode = async (pre: string, sample: string) =>
      (await tokenizerOf(byteLevel(pre))).encode(sample, { addSpecialTokens: false });
    expect(await encode("smollm", "hello wo")).toEqual([idOf("hello"), idOf("Ġwo")]);
    expect(await encode("smollm", "12")).toEqual([idOf("1"), idOf("2")]); // digit by digit
    expect(await encode("qwen2", "12")).toEqual([idOf("1"), idOf("2")]);
    expect(await encode("gpt-2", "12")).toEqual([idOf("12")]);
    expect(await encode("llama-bpe", "12")).toEqual([idOf("12")]); // up to three digits
    expect(await encode("gpt-2", "x'S")).toEqual([idOf("x"), idOf("'"), idOf("S")]);
    expect(await encode("llama-bpe", "x'S")).toEqual([idOf("x"), idOf("'S")]); // contractions in any case
  });

  it("finds control tokens in a text, and leaves them out of one when asked", async () => {
    const tokenizer = await tokenizerOf(byteLevel("smollm"));
    const ids = tokenizer.encode("<|im_start|>hello<|im_end|>");
    expect(ids).toEqual([1, idOf("hello"), 2]);
    expect(tokenizer.decode(ids)).toBe("<|im_start|>hello<|im_end|>");
    expect(tokenizer.decode(ids, { skipSpecial: true })).toBe("hello");
    expect(tokenizer.encode("<|im_start")).toHaveLength(10);
    expect(tokenizer.encode("")).toEqual([]);
    expect(tokenizer.decode([])).toBe("");
  });

  it("knows its size and its special ids", async () => {
    expect(await tokenizerOf(byteLevel("smollm"))).toMatchObject({
      vocabSize: TOKENS.length,
      bosId: 1,
      eosIds: [2, 0],
    });
  });

  it("adds BOS and EOS as the file says, and BOS by default where the model's own tokenizer does", async () => {
    const yes: Field = { type: "bool", value: true };
    const no: Field = { type: "bool", value: false };
    const start = async (pre: string, more: Record<string, Field>) =>
      (await tokenizerOf(byteLevel(pre, more))).encode("h");
    const h = idOf("h");
    expect(await start("smollm", {})).toEqual([h]);
    expect(await start("smollm", { "tokenizer.ggml.add_bos_token": yes })).toEqual([1, h]);
    expect(await start("smollm", { "tokenizer.ggml.add_eos_token": yes })).toEqual([h, 2]);
    expect(await start("llama-bpe", {})).toEqual([1, h]);
    expect(await start("llama-bpe", { "tokenizer.ggml.add_bos_token": no })).toEqual([h]);
    const tokenizer = await tokenizerOf(byteLevel("llama-bpe"));
    expect(tokenizer.encode("h", { addSpecialTokens: false })).toEqual([h]);
  });

  it.each<[string, Record<string, Field>, string]>([
    ["no tokens", { "general.name": { type: "string", value: "x" } }, "L-TOKENIZER-MISSING"],
    [
      "an unknown model",
      byteLevel("smollm", { "tokenizer.ggml.model": { type: "string", value: "rwkv" } }),
      "L-TOKENIZER-KIND",
    ],
    ["an unknown pre-tokenizer", byteLevel("constructor"), "L-TOKENIZER-KIND"],
    [
      "tokens that are numbers",
      byteLevel("smollm", { "tokenizer.ggml.tokens": numbers("i32", [1]) }),
      "L-TOKENIZER",
    ],
    [
      "fewer types than tokens",
      byteLevel("smollm", { "tokenizer.ggml.token_type": numbers("i32", [1]) }),
      "L-TOKENIZER",
    ],
    [
      "a merge of one token",
      byteLevel("smollm", { "tokenizer.ggml.merges": strings(["he"]) }),
      "L-TOKENIZER",
    ],
    [
      "a BOS that is no token",
      byteLevel("smollm", { "tokenizer.ggml.bos_token_id": { type: "u32", value: 9999 } }),
      "L-TOKENIZER",
    ],
  ])("%s is refused", async (_, metadata, code) => {
    expect(await codeOf(tokenizerOf(metadata))).toBe(code);
  });
});

describe("a SentencePiece tokenizer from GGUF metadata", () => {
  const bytes = Array.from(
    { length: 256 },
    (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`,
  );
  const pieces = ["▁ab", "▁a", "ab", "▁▁", "▁▁▁▁", "▁", "a", "b", "c"];
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, ...pieces];
  const kinds = tokens.map((_, id) => (id === 0 ? 2 : id < 3 ? 3 : id < 259 ? 6 : 1));
  const metadata: Record<string, Field> = {
    "tokenizer.ggml.model": { type: "string", value: "llama" },
    "tokenizer.ggml.tokens": strings(tokens),
    "tokenizer.ggml.token_type": numbers("i32", kinds),
    "tokenizer.ggml.scores": numbers(
      "f32",
      tokens.map((_, id) => (id < 259 ? 0 : 259 - id)),
    ),
    "tokenizer.ggml.bos_token_id": { type: "u32", value: 1 },
    "tokenizer.ggml.eos_token_id": { type: "u32", value: 2 },
  };
  const piece = (token: string) => tokens.indexOf(token);

  it("joins the pieces of the best score, puts a blank in front, and BOS by default", async () => {
    const tokenizer = await tokenizerOf(metadata);
    expect(tokenizer.encode("ab abc")).toEqual([1, piece("▁ab"), piece("▁ab"), piece("c")]);
    expect(tokenizer.encode("   c", { addSpecialTokens: false })).toEqual([piece("▁▁▁▁"), piece("c")]);
    expect(tokenizer.encode("ab</s>")).toEqual([1, piece("▁ab"), 2]);
  });

  it("writes what it does not know as bytes, and gives back any text", async () => {
    const tokenizer = await tokenizerOf(metadata);
    const plain = { addSpecialTokens: false };
    expect(tokenizer.encode("é", plain)).toEqual([piece("▁"), piece("<0xC3>"), piece("<0xA9>")]);
    fc.assert(
      fc.property(
        text.filter((sample) => sample !== "" && !/▁|<(unk|\/?s)>/.test(sample)),
        (sample) => {
          expect(tokenizer.decode(tokenizer.encode(sample, plain))).toBe(sample);
        },
      ),
    );
  });

  it("wants a score for each token", async () => {
    const short = { ...metadata, "tokenizer.ggml.scores": numbers("f32", [0]) };
    expect(await codeOf(tokenizerOf(short))).toBe("L-TOKENIZER");
  });
});

describe("a tokenizer.json", () => {
  const json = {
    added_tokens: [{ id: 3, content: "<eos>", special: true }],
    normalizer: null,
    pre_tokenizer: { type: "Whitespace" },
    post_processor: null,
    decoder: null,
    model: {
      type: "WordPiece",
      vocab: { "[UNK]": 0, hello: 1, world: 2 },
      unk_token: "[UNK]",
      continuing_subword_prefix: "##",
      max_input_chars_per_word: 100,
    },
  };

  it("is read with its config", () => {
    const tokenizer = loadTokenizer(json, { eos_token: { content: "<eos>" }, bos_token: null });
    expect(tokenizer.encode("hello world<eos>")).toEqual([1, 2, 3]);
    expect(tokenizer).toMatchObject({ vocabSize: 4, bosId: null, eosIds: [3] });
    expect(() => tokenizer.decode([1, 99])).toThrow(/^\[L-TOKEN-ID\].*99/);
  });

  it("may have tokens with the names of JavaScript's own properties", () => {
    const names = ["[UNK]", "__proto__", "constructor", "toString"];
    const vocab = JSON.parse(`{${names.map((token, id) => `"${token}":${id}`).join()}}`);
    const tokenizer = loadTokenizer({ ...json, model: { ...json.model, vocab } });
    expect(tokenizer.encode("toString __proto__ constructor valueOf")).toEqual([3, 1, 2, 0]);
    expect(tokenizer.decode([1])).toBe("__proto__");
  });

  it("gets the BOS and EOS that its config asks for, once", () => {
    const vocab = { ...json.model.vocab, "<s>": 4 };
    const asked = { bos_token: "<s>", add_bos_token: true, eos_token: "<eos>", add_eos_token: true };
    const encode = (post_processor: object | null, config: object) =>
      loadTokenizer({ ...json, post_processor, model: { ...json.model, vocab } }, config).encode("hello");
    expect(encode(null, asked)).toEqual([4, 1, 3]);
    expect(encode(null, { ...asked, add_bos_token: false })).toEqual([1, 3]);
    expect(encode(null, { ...asked, bos_token: "<none>" })).toEqual([1, 3]);
    const bosFirst = {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [],
      special_tokens: { "<s>": { id: "<s>", ids: [4], tokens: ["<s>"] } },
    };
    expect(encode(bosFirst, asked)).toEqual([4, 1, 3]);
  });

  it("has no special tokens but those of its vocabulary", () => {
    const none = { bos_token: "<none>", eos_token: "<none>" };
    expect(loadTokenizer(json, none)).toMatchObject({ bosId: null, eosIds: [] });
  });

  it("begins a text with BOS, or else with the end of a text before it", () => {
    const { tokenizer } = byteTokenizer();
    expect(startId({ bosId: 1, eosIds: [2, 0] })).toBe(1);
    expect(startId({ bosId: null, eosIds: [2, 0] })).toBe(2);
    expect(startId(tokenizer)).toBe(2);
    expect(() => startId(loadTokenizer(json))).toThrow(/L-PROMPT\].*neither BOS nor EOS/);
  });

  it("refuses a text with what is unknown where it has no token for that", () => {
    const model = { ...json.model, vocab: { hello: 1 } };
    const tokenizer = loadTokenizer({ ...json, model });
    expect(tokenizer.encode("hello")).toEqual([1]);
    expect(() => tokenizer.encode("there")).toThrow(/L-TOKENIZER\].*"\[UNK\]" is not in the vocabulary/);
  });

  it("may have any names in its vocabulary, but no expression that the library ignores, or that may never end", () => {
    const vocab = { ...json.model.vocab, pattern: 4, Regex: 5 };
    const withPattern = (pattern: unknown) => {
      const replace = { type: "Replace", pattern, content: "" };
      const normalizer = { type: "Sequence", normalizers: [replace] };
      return loadTokenizer({ ...json, normalizer, model: { ...json.model, vocab } });
    };
    expect(withPattern({ Regex: "h+" }).encode("hpattern hRegex")).toEqual([4, 5]);
    expect(() => withPattern({ Regexp: "h" })).toThrow(/L-TOKENIZER\].*\{"Regexp":"h"\} is not a pattern/);
    expect(() => withPattern("h")).toThrow(/L-TOKENIZER\].*"h" is not a pattern/);
    expect(() => withPattern({ Regex: "(h+)+" })).toThrow(
      /L-TOKENIZER\].*"\(h\+\)\+" has repetitions within/,
    );
    expect(withPattern({ String: "(h+)+" }).encode("(h+)+pattern")).toEqual([4]);
  });

  it.each([null, 5, "a", { a: 1, b: "c" }, { a: 1.5 }, { a: -1 }, { a: 2 ** 31 }])(
    "whose vocabulary is %j is refused",
    (vocab) => {
      expect(() => loadTokenizer({ ...json, model: { ...json.model, vocab } })).toThrow(
        /L-TOKENIZER\].*must map tokens to whole numbers/,
      );
    },
  );

  it.each<[string, unknown, unknown]>([
    ["nothing", null, {}],
    ["an added token of an id past any", { ...json, added_tokens: [{ id: 2 ** 31, content: "x" }] }, {}],
    ["no model", {}, {}],
    ["a vocabulary of texts", { ...json, model: { ...json.model, vocab: { a: "b" } } }, {}],
    ["a part the library does not know", { ...json, normalizer: { type: "Rot13" } }, {}],
    ["a config whose EOS is a number", json, { eos_token: 3 }],
  ])("%s is refused", (_, tokenizer, config) => {
    expect(() => loadTokenizer(tokenizer, config, "some/tokenizer.json")).toThrow(
      /L-TOKENIZER\] some\/tokenizer\.json/,
    );
  });
});
