/**
 * A `tokenizer.json` in terms that the JavaScript library runs as the Rust library does, which defines the format. The former
 * knows ASCII digits only, takes the byte order mark for whitespace, and leaves out some behaviors of Split and Metaspace.
 */

/** The regular expression of GPT-2, which a byte-level pre-tokenizer applies unless it says otherwise. */
export const GPT2_SPLIT =
  "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
const PUNCTUATION = "[\\p{P}!-/:-@\\[-`{-~]";
const REST = "[\\s\\S]";

/** A part of the file: a pre-tokenizer, a decoder, or their sequence. */
interface Part {
  readonly type: string;
  readonly [field: string]: unknown;
}

/** A pre-tokenizer whose pieces are the matches of an expression, and the text between them unless it says otherwise. */
export const split = (Regex: string, behavior = "Isolated", invert = false): Part => ({
  type: "Split",
  pattern: { Regex },
  behavior,
  invert,
});
const sequence = (...pretokenizers: Part[]): Part => ({ type: "Sequence", pretokenizers });
const escaped = (text: string): string => text.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&");

/** Behaviors of Split as regular expressions of which each match is a piece, as is the text between matches. */
const PIECES: Readonly<Record<string, (pattern: string) => string>> = {
  Isolated: (pattern) => pattern,
  Contiguous: (pattern) => `(?:${pattern})+`,
  MergedWithPrevious: (pattern) => `${REST}*?(?:${pattern})|${REST}+`,
  MergedWithNext: (pattern) => `(?:${pattern})${REST}*?(?=${pattern}|(?!${REST}))`,
};
/** What is merged with the text before it, if inverted, is text that has the match before it merged with it. */
const INVERTED: Readonly<Record<string, string>> = {
  MergedWithPrevious: "MergedWithNext",
  MergedWithNext: "MergedWithPrevious",
};

function splitPart(part: Part): Part {
  const { behavior, invert } = part;
  const { Regex, String: text } = part.pattern as { Regex?: string; String?: string };
  const pattern = Regex ?? escaped(text ?? "");
  const wanted = (invert ? INVERTED[String(behavior)] : undefined) ?? String(behavior);
  if (!Object.hasOwn(PIECES, wanted)) return split(pattern, wanted, invert === true);
  return split(PIECES[wanted](pattern));
}

/** Pre-tokenizers by type; those that are not here are run alike by both libraries. */
const PRE_TOKENIZERS: Readonly<Record<string, (part: Part) => Part>> = {
  Sequence: (part) => sequence(...(part.pretokenizers as Part[]).map(preTokenizerPart)),
  Split: splitPart,
  Digits: ({ individual_digits }) => split(individual_digits ? "\\p{N}" : "\\p{N}+"),
  Punctuation: ({ behavior = "Isolated" }) => splitPart(split(PUNCTUATION, String(behavior))),
  Whitespace: () => split("\\w+|[^\\w\\s]+", "Removed", true),
  WhitespaceSplit: () => split("\\s+", "Removed"),
  ByteLevel: (part) => {
    if (part.use_regex === false) return part;
    const space = { type: "Replace", pattern: { Regex: "\\A[^ ]" }, content: " $&" };
    const bytes = { ...part, add_prefix_space: false, use_regex: false };
    return sequence(...(part.add_prefix_space ? [space] : []), split(GPT2_SPLIT), bytes);
  },
  Metaspace: (part) => {
    const mark = escaped(String(part.replacement));
    return part.split === false ? part : sequence(part, split(PIECES.MergedWithNext(mark)));
  },
};

function preTokenizerPart(part: Part): Part {
  return Object.hasOwn(PRE_TOKENIZERS, part.type) ? PRE_TOKENIZERS[part.type](part) : part;
}

/** The library's Metaspace decoder always removes a first space, also where none was put in front. */
function decoderPart(part: Part): Part {
  if (part.type === "Sequence") return { ...part, decoders: (part.decoders as Part[]).map(decoderPart) };
  if (part.type !== "Metaspace" || part.prepend_scheme !== "never") return part;
  return { type: "Replace", pattern: { String: part.replacement }, content: " " };
}

/** The same tokenizer in these terms. Throws a `TypeError` where parts have not the form of the format. */
export function portableTokenizer<Json extends { pre_tokenizer: Part | null; decoder: Part | null }>(
  json: Json,
): Json {
  return {
    ...json,
    pre_tokenizer: json.pre_tokenizer && preTokenizerPart(json.pre_tokenizer),
    decoder: json.decoder && decoderPart(json.decoder),
  };
}

/** Makes the library's decoders keep a byte order mark, which its byte fallback removes. */
export function keepByteOrderMarks(decoder: unknown): void {
  if (typeof decoder !== "function") return; // the library's objects are callable
  if ("decoders" in decoder) for (const inner of decoder.decoders as unknown[]) keepByteOrderMarks(inner);
  if ("text_decoder" in decoder) decoder.text_decoder = new TextDecoder("utf-8", { ignoreBOM: true });
}
