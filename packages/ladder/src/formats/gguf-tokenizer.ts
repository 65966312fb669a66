/** A tokenizer from GGUF metadata, which is turned into a `tokenizer.json`. */
import { SidenetError } from "@sidenet/tensor";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer.ts";
import { GPT2_SPLIT, split } from "../text/tokenizer-json.ts";
import type { GgufFile } from "./gguf.ts";

/** Kinds of token in `tokenizer.ggml.token_type`. */
export const NORMAL = 1;
export const UNKNOWN = 2;
export const CONTROL = 3;
export const USER_DEFINED = 4;
export const UNUSED = 5;
export const BYTE = 6;

const modernSplit = (digits: string) =>
  `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+`;

interface PreTokenizer {
  /** Applied one after the other; text between matches is a piece of its own. */
  readonly splits: readonly string[];
  /** A piece that is a token is not merged from its bytes. */
  readonly ignoreMerges?: boolean;
  /** When the file does not say. */
  readonly addBos?: boolean;
  readonly normalizer?: "NFC";
}

const DIGITS_THEN_GPT2: PreTokenizer = { splits: ["\\p{N}", GPT2_SPLIT] };
const LLAMA3: PreTokenizer = { splits: [modernSplit("\\p{N}{1,3}")], ignoreMerges: true, addBos: true };
const QWEN2: PreTokenizer = { splits: [modernSplit("\\p{N}")], normalizer: "NFC" };

/** Pre-tokenizers by the value of `tokenizer.ggml.pre`. Source: the models' tokenizer.json files. */
export const PRE_TOKENIZERS: Readonly<Record<string, PreTokenizer>> = {
  smollm: DIGITS_THEN_GPT2,
  starcoder: DIGITS_THEN_GPT2,
  refact: DIGITS_THEN_GPT2,
  "command-r": DIGITS_THEN_GPT2,
  "gpt-2": { splits: [GPT2_SPLIT] },
  "llama-bpe": LLAMA3,
  llama3: LLAMA3,
  "llama-v3": LLAMA3,
  qwen2: QWEN2,
  "deepseek-r1-qwen": QWEN2,
};

/** The tokenizer fields of the metadata, checked. */
interface Vocabulary {
  readonly name: string;
  readonly tokens: readonly string[];
  /** Kind of each token; ordinary where the file is silent. */
  readonly kinds: readonly number[];
  flag(key: string, fallback: boolean): boolean;
  id(key: string): number | null;
  texts(key: string): string[];
  numbers(key: string): number[];
}

function fail(name: string, text: string): never {
  throw new SidenetError("L-TOKENIZER", `${name}: ${text}`);
}

function readVocabulary({ metadata, source: { name } }: GgufFile): Vocabulary {
  const list = (key: string, type: string): unknown[] => {
    const values = metadata.get(`tokenizer.ggml.${key}`);
    const fits = Array.isArray(values) && values.every((value) => typeof value === type);
    return fits
      ? values
      : fail(name, `tokenizer.ggml.${key} is not a list of ${type}s. Convert the model again.`);
  };
  const texts = (key: string) => list(key, "string") as string[];
  const numbers = (key: string) => list(key, "number") as number[];
  const tokens = texts("tokens");
  const kinds = metadata.has("tokenizer.ggml.token_type") ? numbers("token_type") : [];
  if (kinds.length !== 0 && kinds.length !== tokens.length) {
    fail(
      name,
      `tokenizer.ggml has ${tokens.length} tokens, but ${kinds.length} token types. Convert the model again.`,
    );
  }
  const flag = (key: string, fallback: boolean) => {
    const value = metadata.get(`tokenizer.ggml.${key}`) ?? fallback;
    return typeof value === "boolean" ? value : fail(name, `tokenizer.ggml.${key} is not true or false.`);
  };
  const id = (key: string) => {
    const value = metadata.get(`tokenizer.ggml.${key}_token_id`);
    if (value === undefined) return null;
    const known = typeof value === "number" && tokens[value] !== undefined;
    return known ? value : fail(name, `tokenizer.ggml.${key}_token_id = ${String(value)} is no token.`);
  };
  return { name, tokens, kinds, flag, id, texts, numbers };
}

/** Tokens that are found in the text before anything else is done with it. */
function addedTokens({ tokens, kinds }: Vocabulary): object[] {
  const added: object[] = [];
  for (const [id, content] of tokens.entries()) {
    const kind = kinds[id];
    if (content !== "" && (kind === CONTROL || kind === UNKNOWN || kind === USER_DEFINED)) {
      const exact = { single_word: false, lstrip: false, rstrip: false, normalized: false };
      added.push({ id, content, special: kind !== USER_DEFINED, ...exact });
    }
  }
  return added;
}

/** The post-processor that adds BOS and EOS as the file says. */
function postProcessor(vocabulary: Vocabulary, addBosDefault: boolean): object | null {
  const { tokens, flag, id } = vocabulary;
  const special = (wanted: boolean, key: string) => {
    const found = wanted ? id(key) : null;
    return found === null ? [] : [{ SpecialToken: { id: tokens[found], type_id: 0 } }];
  };
  const before = special(flag("add_bos_token", addBosDefault), "bos");
  const after = special(flag("add_eos_token", false), "eos");
  const single = [...before, { Sequence: { id: "A", type_id: 0 } }, ...after];
  if (single.length === 1) return null;
  const pair = [...single, ...before, { Sequence: { id: "B", type_id: 1 } }, ...after];
  const special_tokens = Object.fromEntries(
    [...before, ...after].map(({ SpecialToken: { id: token } }) => [
      token,
      { id: token, ids: [tokens.indexOf(token)], tokens: [token] },
    ]),
  );
  return { type: "TemplateProcessing", single, pair, special_tokens };
}

const vocabularyObject = (tokens: readonly string[]): Record<string, number> =>
  Object.fromEntries(tokens.map((token, id) => [token, id]));

/** `tokenizer.ggml.model` "gpt2": byte-level BPE with its list of merges. */
function byteLevelJson(vocabulary: Vocabulary, pre: PreTokenizer): object {
  const { name, tokens } = vocabulary;
  const merges = vocabulary.texts("merges").map((merge) => {
    const blank = merge.indexOf(" ", 1);
    if (blank < 0) fail(name, `the merge "${merge}" is not two tokens. Convert the model again.`);
    return [merge.slice(0, blank), merge.slice(blank + 1)];
  });
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  return {
    added_tokens: addedTokens(vocabulary),
    normalizer: pre.normalizer ? { type: pre.normalizer } : null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [...pre.splits.map((regex) => split(regex)), byteLevel],
    },
    post_processor: postProcessor(vocabulary, pre.addBos ?? false),
    decoder: byteLevel,
    model: {
      type: "BPE",
      vocab: vocabularyObject(tokens),
      merges,
      ignore_merges: pre.ignoreMerges ?? false,
    },
  };
}

/**
 * The merges that a SentencePiece vocabulary implies: each way to split a token into two others, best score first and,
 * among the splits of equal score, longest left part first: that order gives runs of spaces the pieces SentencePiece gives.
 */
function mergesFromScores(
  tokens: readonly string[],
  kinds: readonly number[],
  scores: readonly number[],
): string[][] {
  const known = new Set(tokens);
  const found: { left: string; right: string; score: number }[] = [];
  for (const [id, token] of tokens.entries()) {
    if (kinds[id] === CONTROL || kinds[id] === UNKNOWN || kinds[id] === BYTE) continue;
    for (let at = 1; at < token.length; at++) {
      const [left, right] = [token.slice(0, at), token.slice(at)];
      if (known.has(left) && known.has(right)) found.push({ left, right, score: scores[id] });
    }
  }
  found.sort((a, b) => b.score - a.score || b.left.length - a.left.length);
  return found.map(({ left, right }) => [left, right]);
}

/** `tokenizer.ggml.model` "llama": SentencePiece BPE, words marked by "▁", unknown characters as bytes. */
function sentencePieceJson(vocabulary: Vocabulary): object {
  const { name, tokens, kinds, flag, id } = vocabulary;
  const scores = vocabulary.numbers("scores");
  if (scores.length !== tokens.length || kinds.length === 0) {
    fail(name, `${tokens.length} tokens need as many scores (${scores.length}) and types (${kinds.length}).`);
  }
  if (flag("remove_extra_whitespaces", false))
    fail(name, "tokenizer.ggml.remove_extra_whitespaces is not supported.");
  const prefix = flag("add_space_prefix", true);
  const replace = (from: string, content: string) => ({
    type: "Replace",
    pattern: { String: from },
    content,
  });
  const normalizers = [...(prefix ? [{ type: "Prepend", prepend: "▁" }] : []), replace(" ", "▁")];
  const strip = prefix ? [{ type: "Strip", content: " ", start: 1, stop: 0 }] : [];
  return {
    added_tokens: addedTokens(vocabulary),
    normalizer: { type: "Sequence", normalizers },
    pre_tokenizer: null,
    post_processor: postProcessor(vocabulary, true),
    decoder: {
      type: "Sequence",
      decoders: [replace("▁", " "), { type: "ByteFallback" }, { type: "Fuse" }, ...strip],
    },
    model: {
      type: "BPE",
      vocab: vocabularyObject(tokens),
      merges: mergesFromScores(tokens, kinds, scores),
      unk_token: tokens[id("unknown") ?? kinds.indexOf(UNKNOWN)] ?? null,
      byte_fallback: true,
      fuse_unk: true,
    },
  };
}

function tokenizerJson(gguf: GgufFile, vocabulary: Vocabulary): object {
  const model = gguf.metadata.get("tokenizer.ggml.model");
  if (model === "llama") return sentencePieceJson(vocabulary);
  const pre = gguf.metadata.get("tokenizer.ggml.pre");
  if (model === "gpt2" && typeof pre === "string" && Object.hasOwn(PRE_TOKENIZERS, pre)) {
    return byteLevelJson(vocabulary, PRE_TOKENIZERS[pre]);
  }
  throw new SidenetError(
    "L-TOKENIZER-KIND",
    `${gguf.source.name}: tokenizer model ${JSON.stringify(model ?? null)}, pre-tokenizer ${JSON.stringify(pre ?? null)}: ` +
      `"llama", and "gpt2" with one of ${Object.keys(PRE_TOKENIZERS).join(", ")}, can be read. ` +
      "Use the model's folder with its tokenizer.json.",
  );
}

function vocabularyOf(gguf: GgufFile): Vocabulary {
  if (gguf.metadata.has("tokenizer.ggml.tokens")) return readVocabulary(gguf);
  throw new SidenetError(
    "L-TOKENIZER-MISSING",
    `${gguf.source.name} holds no tokenizer (tokenizer.ggml.tokens). Use a file that was converted with its vocabulary.`,
  );
}

/** Special tokens by the names that chat templates use. */
function specialTokens({ tokens, id }: Vocabulary): Record<string, string> {
  const named = {
    bos_token: id("bos"),
    eos_token: id("eos"),
    pad_token: id("padding"),
    unk_token: id("unknown"),
  };
  return Object.fromEntries(
    Object.entries(named).flatMap(([name, found]) => (found === null ? [] : [[name, tokens[found]]])),
  );
}

/** Throws `L-TOKENIZER-MISSING`, `L-TOKENIZER-KIND` or `L-TOKENIZER`. */
export function tokenizerFromGguf(gguf: GgufFile): Tokenizer {
  const { tokenizer, config } = tokenizerFilesFromGguf(gguf);
  const { id } = vocabularyOf(gguf);
  const ends = [id("eot"), id("eom")].filter((end) => end !== null);
  return loadTokenizer(tokenizer, config, gguf.source.name, ends);
}

/** `tokenizer.json` and `tokenizer_config.json` of the same tokenizer, as Python reads them too. Throws as above. */
export function tokenizerFilesFromGguf(gguf: GgufFile): { tokenizer: object; config: object } {
  const vocabulary = vocabularyOf(gguf);
  const template = gguf.metadata.get("tokenizer.chat_template");
  return {
    tokenizer: { version: "1.0", truncation: null, padding: null, ...tokenizerJson(gguf, vocabulary) },
    config: {
      tokenizer_class: "PreTrainedTokenizerFast",
      clean_up_tokenization_spaces: false,
      ...specialTokens(vocabulary),
      ...(typeof template === "string" ? { chat_template: template } : {}),
    },
  };
}
