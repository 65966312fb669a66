import { describe, expect, it } from "vitest";
import { loadTokenizer } from "../src/text/tokenizer.ts";

/** A tokenizer whose tokens are these pieces; anything else is "[UNK]". */
function pieceTokenizer(pre_tokenizer: object, pieces: readonly string[]) {
  const names = ["[UNK]", ...new Set(pieces)];
  const vocab = Object.fromEntries(names.map((piece, id) => [piece, id]));
  const model = {
    type: "WordPiece",
    vocab,
    unk_token: "[UNK]",
    continuing_subword_prefix: "##",
    max_input_chars_per_word: 100,
  };
  const json = {
    added_tokens: [],
    normalizer: null,
    pre_tokenizer,
    post_processor: null,
    decoder: null,
    model,
  };
  const tokenizer = loadTokenizer(json);
  return (text: string) => tokenizer.encode(text).map((id) => names[id]);
}

const split = (pattern: object, behavior: string, invert = false) => ({
  type: "Split",
  pattern,
  behavior,
  invert,
});
const DOT = { String: "." };
const DIGIT = { Regex: "\\d" };
const MARKS = { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: true };
const BYTES = { type: "ByteLevel", trim_offsets: true };

describe("a pre-tokenizer", () => {
  // The pieces are those of Python's tokenizers 0.23.3.
  it.each<[object, string, string[]]>([
    [{ type: "Digits", individual_digits: true }, "ab½1٣cd", ["ab", "½", "1", "٣", "cd"]],
    [{ type: "Digits", individual_digits: false }, "a½1٣b", ["a", "½1٣", "b"]],
    [{ ...BYTES, add_prefix_space: false }, "\ufeff. \u0085a", ["ï»¿.", "Ġ", "Âħ", "a"]],
    [{ ...BYTES, add_prefix_space: true, use_regex: true }, "🙂a", ["ĠðŁĻĤ", "a"]],
    [{ ...BYTES, add_prefix_space: false, use_regex: false }, "a b1", ["aĠb1"]],
    [{ type: "Whitespace" }, "é ü.a", ["é", "ü", ".", "a"]],
    [{ type: "WhitespaceSplit" }, "a\u0085b\ufeff", ["a", "b\ufeff"]],
    [{ type: "Punctuation" }, "ab!?c$d «e»", ["ab", "!", "?", "c", "$", "d ", "«", "e", "»"]],
    [{ type: "Punctuation", behavior: "MergedWithPrevious" }, "ab!?c$d", ["ab!", "?", "c$", "d"]],
    [{ type: "BertPreTokenizer" }, "ab, c!", ["ab", ",", "c", "!"]],
    [MARKS, "a  b", ["▁a", "▁", "▁b"]],
    [{ type: "Metaspace", replacement: "▁", prepend_scheme: "always" }, "a b", ["▁a", "▁b"]],
    [{ ...MARKS, split: false }, "a  b", ["▁a▁▁b"]],
    [{ ...MARKS, replacement: "_", prepend_scheme: "never" }, "a b", ["a", "_b"]],
    [split(DOT, "Isolated"), "a..b.", ["a", ".", ".", "b", "."]],
    [split(DIGIT, "Isolated", true), "1ab23c", ["1", "ab", "2", "3", "c"]],
    [split(DOT, "Removed"), "a..b.", ["a", "b"]],
    [split(DIGIT, "Removed", true), "1ab23c", ["1", "2", "3"]],
    [split(DOT, "Contiguous"), "a..b.", ["a", "..", "b", "."]],
    [split(DIGIT, "Contiguous", true), "1ab23c", ["1", "ab", "23", "c"]],
    [split(DOT, "MergedWithPrevious"), "a..b.", ["a.", ".", "b."]],
    [split(DIGIT, "MergedWithPrevious"), "1ab23c", ["1", "ab2", "3", "c"]],
    [split(DIGIT, "MergedWithPrevious", true), "1ab23c", ["1ab", "2", "3c"]],
    [split(DOT, "MergedWithNext"), "a..b.", ["a", ".", ".b", "."]],
    [split(DIGIT, "MergedWithNext"), "1ab23c", ["1ab", "2", "3c"]],
    [split(DOT, "MergedWithNext", true), "a..b.", ["a.", ".", "b."]],
  ])("%j splits %j as the Rust library does", (preTokenizer, text, pieces) => {
    expect(pieceTokenizer(preTokenizer, pieces)(text)).toEqual(pieces);
    const nested = { type: "Sequence", pretokenizers: [preTokenizer] };
    expect(pieceTokenizer(nested, pieces)(text)).toEqual(pieces);
  });

  it("takes time in proportion to the text that no pattern matches", () => {
    const text = "x".repeat(200_000);
    for (const behavior of ["MergedWithPrevious", "MergedWithNext", "Contiguous"]) {
      expect(pieceTokenizer(split(DIGIT, behavior), [])(text)).toEqual(["[UNK]"]);
    }
  });
});

describe("a decoder", () => {
  const decoded = (decoder: object, tokens: string[]) => {
    const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
    const model = { type: "BPE", vocab, merges: [], byte_fallback: true };
    const json = { added_tokens: [], normalizer: null, pre_tokenizer: null, post_processor: null };
    return loadTokenizer({ ...json, decoder, model }).decode(tokens.keys());
  };

  it("keeps a byte order mark that was written as bytes", () => {
    const bytes = ["<0xEF>", "<0xBB>", "<0xBF>"];
    expect(decoded({ type: "ByteFallback" }, bytes)).toBe("\ufeff");
    const nested = { type: "Sequence", decoders: [{ type: "ByteFallback" }, { type: "Fuse" }] };
    expect(decoded(nested, [...bytes, "a"])).toBe("\ufeffa");
  });

  it("keeps a first space where none was put in front of the text", () => {
    const never = { type: "Metaspace", replacement: "▁", prepend_scheme: "never" };
    expect(decoded(never, ["▁a", "▁b"])).toBe(" a b");
    expect(decoded({ ...never, prepend_scheme: "always" }, ["▁a", "▁b"])).toBe("a b");
    const nested = { type: "Sequence", decoders: [{ ...never, replacement: "_" }] };
    expect(decoded(nested, ["_a", "_b"])).toBe(" a b");
  });
});

describe("an added token that must be a word of its own", () => {
  it("is refused, since the library would find it within words too", () => {
    const token = { id: 1, content: "cat", single_word: true, special: false };
    const json = { added_tokens: [token], model: { type: "BPE", vocab: { a: 0 }, merges: [] } };
    expect(() => loadTokenizer(json)).toThrow(/L-TOKENIZER\].*"cat".*single_word/);
    expect(loadTokenizer({ ...json, added_tokens: [{ ...token, single_word: false }] }).vocabSize).toBe(2);
  });
});
