/** The `tokenizer.ggml` fields of a GGUF file, from a `tokenizer.json` or from another GGUF file. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import type { ModelConfig } from "../model/config.ts";
import { loadTokenizer, type Tokenizer, vocabularySchema } from "../text/tokenizer.ts";
import { GPT2_SPLIT } from "../text/tokenizer-json.ts";
import { memorySource } from "./byte-source.ts";
import { type GgufFile, type GgufValue, readGguf } from "./gguf.ts";
import {
  BYTE,
  CONTROL,
  NORMAL,
  PRE_TOKENIZERS,
  tokenizerFromGguf,
  UNKNOWN,
  UNUSED,
  USER_DEFINED,
} from "./gguf-tokenizer.ts";
import { encodeGgufHeader, type GgufField, type GgufFields, ggufNumbers, ggufStrings } from "./gguf-write.ts";

/** The tokenizer files of a folder. */
interface TokenizerFiles {
  /** Parsed `tokenizer.json`. */
  readonly tokenizer: unknown;
  /** Parsed `tokenizer_config.json`, or {}. */
  readonly config: unknown;
  readonly chatTemplate: string | null;
}

const addedSchema = z.looseObject({ id: z.int().nonnegative(), content: z.string(), special: z.boolean() });
const schema = z.looseObject({
  added_tokens: z.array(addedSchema).default([]),
  normalizer: z.unknown(),
  pre_tokenizer: z.unknown(),
  model: z.looseObject({
    type: z.string().optional(),
    vocab: vocabularySchema,
    merges: z.array(z.union([z.string(), z.tuple([z.string(), z.string()])])),
    byte_fallback: z.boolean().optional(),
    unk_token: z.string().nullish(),
  }),
});
type Json = z.infer<typeof schema>;

const partSchema = z.looseObject({
  type: z.string(),
  pretokenizers: z.array(z.unknown()).optional(),
  pattern: z.looseObject({ Regex: z.string().optional() }).optional(),
  use_regex: z.boolean().optional(),
  individual_digits: z.boolean().optional(),
});

/** The regular expressions of a byte-level pre-tokenizer, in order; null for any other pre-tokenizer. */
function splitsOf(preTokenizer: unknown): string[] | null {
  const parsed = partSchema.safeParse(preTokenizer);
  if (!parsed.success) return null;
  const { type, pretokenizers = [], pattern, use_regex, individual_digits } = parsed.data;
  if (type === "Split") return pattern?.Regex === undefined ? null : [pattern.Regex];
  if (type === "Digits") return individual_digits ? ["\\p{N}"] : null;
  if (type === "ByteLevel") return use_regex === false ? [] : [GPT2_SPLIT];
  if (type !== "Sequence") return null;
  const parts = pretokenizers.map(splitsOf);
  return parts.every((part) => part !== null) ? parts.flat() : null;
}

/** llama.cpp's name of a pre-tokenizer; the first of equal ones. Throws `L-TOKENIZER-KIND`. */
function preTokenizerName(json: Json, name: string): string {
  const splits = splitsOf(json.pre_tokenizer)?.join("\n");
  const found = Object.entries(PRE_TOKENIZERS).find(([, pre]) => pre.splits.join("\n") === splits);
  if (found) return found[0];
  throw new SidenetError(
    "L-TOKENIZER-KIND",
    `${name}: its pre-tokenizer has no name in a GGUF file that is known here ` +
      `(${Object.keys(PRE_TOKENIZERS).join(", ")}). Convert with llama.cpp's own script.`,
  );
}

/** Tokens by id up to `size`; ids without one are "[PAD…]", as llama.cpp's converter calls them. */
function tokensById(json: Json, size: number, name: string): { tokens: string[]; kinds: number[] } {
  const tokens = Array.from({ length: size }, (_, id) => `[PAD${id}]`);
  const kinds = tokens.map(() => UNUSED);
  const put = (id: number, token: string, kind: number): void => {
    if (id >= size) {
      throw new SidenetError(
        "L-TOKENIZER",
        `${name}: token ${JSON.stringify(token)} has the id ${id}, but the model's vocabulary ends at ${size - 1}. ` +
          "Do the two belong together?",
      );
    }
    tokens[id] = token;
    kinds[id] = kind;
  };
  for (const [token, id] of Object.entries(json.model.vocab)) {
    const isByte = json.model.byte_fallback && /^<0x[0-9A-F]{2}>$/.test(token);
    put(id, token, isByte ? BYTE : /^\[PAD\d+\]$/.test(token) ? UNUSED : NORMAL);
  }
  for (const { id, content, special } of json.added_tokens)
    put(id, content, special ? CONTROL : USER_DEFINED);
  const unknown = tokens.indexOf(json.model.unk_token ?? "");
  if (unknown >= 0) kinds[unknown] = UNKNOWN;
  return { tokens, kinds };
}

const pairs = (json: Json): (readonly [string, string])[] =>
  json.model.merges.map((merge) => {
    if (typeof merge !== "string") return merge;
    const blank = merge.indexOf(" ", 1);
    return [merge.slice(0, blank), merge.slice(blank + 1)];
  });

/** SentencePiece merges by score: that of a token is the rank of the first merge that makes it. */
function scoresFrom(json: Json, tokens: readonly string[]): number[] {
  const rank = new Map<string, number>();
  for (const [left, right] of pairs(json)) if (!rank.has(left + right)) rank.set(left + right, rank.size);
  return tokens.map((token) => -(rank.get(token) ?? rank.size));
}

/** Whether a text gets a space in front, as SentencePiece's dummy prefix. */
const hasPrefix = ({ normalizer, pre_tokenizer }: Json): boolean =>
  JSON.stringify(normalizer ?? null).includes('"Prepend"') ||
  /"prepend_scheme":"(always|first)"/.test(JSON.stringify(pre_tokenizer ?? null));

/** Ids with a meaning: the tokenizer's own, then what the model's configuration adds. */
function specialFields(tokenizer: Tokenizer, config: ModelConfig): Record<string, GgufField> {
  const { bosId } = tokenizer;
  const eosIds = [...new Set([...tokenizer.eosIds, ...config.eosTokenIds])];
  const around = tokenizer.encode("");
  const id = (key: string, value: number | null | undefined): Record<string, GgufField> =>
    value == null || value >= config.vocabSize
      ? {}
      : { [`tokenizer.ggml.${key}_token_id`]: { type: "u32", value } };
  return {
    ...id("bos", bosId ?? config.bosTokenId),
    ...id("eos", eosIds[0]),
    ...id("eot", eosIds[1]),
    ...id("padding", config.padTokenId),
    "tokenizer.ggml.add_bos_token": { type: "bool", value: bosId !== null && around[0] === bosId },
    "tokenizer.ggml.add_eos_token": { type: "bool", value: around.length > 0 && around.at(-1) === eosIds[0] },
  };
}

/** Texts that a tokenizer read back from the fields must split like the original. */
const PROBES = [
  "",
  " ",
  "Hello, world! It's 2026; they'll pay $1,234.50.",
  "  two  spaces\tand\ttabs\n\nand\r\nlines  ",
  "naïve café — Ünïcödé, ﬁ, ½, x², e\u0301, 東京タワー, Привет, שלום, नमस्ते",
  "👩‍👩‍👧 🇩🇪 🙂",
  "function f(x) { return x?.y ?? [1, 22, 333, 4444]; } // it's\n\tif (a != b):",
  "\u0000\u0007\u007f\ufeff\u200b",
  "1234567890 12 345 6789",
  "WE'RE HERE, I'Ve",
];

/** Reads the fields back and compares. Throws `L-TOKENIZER-KIND` on a text that is split into other tokens. */
async function checkSame(fields: GgufFields, original: Tokenizer, name: string): Promise<void> {
  const made = tokenizerFromGguf(await readGguf(memorySource(encodeGgufHeader({ metadata: fields }), name)));
  for (const text of PROBES) {
    if (made.encode(text).join() === original.encode(text).join()) continue;
    throw new SidenetError(
      "L-TOKENIZER-KIND",
      `${name}: as a GGUF vocabulary it would split ${JSON.stringify(text)} in another way. Convert with llama.cpp's own script.`,
    );
  }
}

/**
 * The fields of a model's tokenizer, checked by reading them back on texts of many kinds.
 * Throws `L-TOKENIZER`, and `L-TOKENIZER-KIND` for a tokenizer that GGUF cannot represent.
 */
export async function vocabularyFields(
  files: TokenizerFiles,
  model: ModelConfig,
  name: string,
): Promise<GgufFields> {
  const original = loadTokenizer(files.tokenizer, files.config, name);
  const parsed = schema.safeParse(files.tokenizer);
  if (!parsed.success || (parsed.data.model.type ?? "BPE") !== "BPE") {
    throw new SidenetError(
      "L-TOKENIZER-KIND",
      `${name}: only BPE tokenizers can be written to a GGUF file. Convert with llama.cpp's own script.`,
    );
  }
  const json = parsed.data;
  const { tokens, kinds } = tokensById(json, model.vocabSize, name);
  const isSentencePiece = json.model.byte_fallback === true;
  const string = (value: string): GgufField => ({ type: "string", value });
  const fields: GgufFields = {
    "tokenizer.ggml.model": string(isSentencePiece ? "llama" : "gpt2"),
    "tokenizer.ggml.pre": string(isSentencePiece ? "default" : preTokenizerName(json, name)),
    "tokenizer.ggml.tokens": ggufStrings(tokens),
    "tokenizer.ggml.token_type": ggufNumbers("i32", kinds),
    ...(isSentencePiece
      ? {
          "tokenizer.ggml.scores": ggufNumbers("f32", scoresFrom(json, tokens)),
          "tokenizer.ggml.add_space_prefix": { type: "bool", value: hasPrefix(json) },
        }
      : { "tokenizer.ggml.merges": ggufStrings(pairs(json).map((pair) => pair.join(" "))) }),
    ...specialFields(original, model),
    ...(files.chatTemplate === null ? {} : { "tokenizer.chat_template": string(files.chatTemplate) }),
  };
  await checkSame(fields, original, name);
  return fields;
}

/** The fields for a model without a vocabulary. */
export const NO_VOCABULARY: GgufFields = { "tokenizer.ggml.model": { type: "string", value: "no_vocab" } };

function fieldOf(key: string, value: GgufValue): GgufField | null {
  if (typeof value === "string") return { type: "string", value };
  if (typeof value === "boolean") return { type: "bool", value };
  if (typeof value === "number") return { type: Number.isInteger(value) ? "u32" : "f32", value };
  if (!Array.isArray(value)) return null;
  if (value.every((item) => typeof item === "string")) return ggufStrings(value);
  const type = key.endsWith(".scores") ? "f32" : "i32";
  return value.every((item) => typeof item === "number") ? ggufNumbers(type, value) : null;
}

/** The fields of another file, unchanged. */
export function copiedVocabulary({ metadata }: GgufFile): GgufFields {
  const fields: Record<string, GgufField> = {};
  for (const [key, value] of metadata) {
    const field = key.startsWith("tokenizer.") ? fieldOf(key, value) : null;
    if (field) fields[key] = field;
  }
  return fields;
}
