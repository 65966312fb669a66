/** Text to token ids and back, by the hub's own library; this file adds checks, typed errors and exact decoding. */
import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import { ChatTemplate, type SpecialTokens } from "./chat-template.ts";
import { nestsRepetitions } from "./regular-expression.ts";

/** What is put around a text when it is encoded. */
export interface EncodingOptions {
  /** What the tokenizer puts around a text, such as BOS. Default true. */
  readonly addSpecialTokens?: boolean;
  /** The text goes on from another one, so no blank is put in front of it, as some tokenizers do. Default false. */
  readonly continues?: boolean;
}

/** Text to token ids and back, as a model's files have it. */
export interface Tokenizer {
  /** Special tokens in the text are parsed. */
  encode(text: string, options?: EncodingOptions): number[];
  /** Throws `L-TOKEN-ID` on an id outside the vocabulary. `skipSpecial` (default false) leaves control tokens out. */
  decode(ids: Iterable<number>, options?: { skipSpecial?: boolean }): string;
  /** One above the largest id. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
  /** How the model's conversations are written; null: it has no template. Throws `L-CHAT-TEMPLATE`. */
  chatTemplate(): ChatTemplate | null;
  /** The same tokenizer with the template of a text. Throws `L-CHAT-TEMPLATE`. */
  withChatTemplate(source: string, name: string): Tokenizer;
}

/** What is used of the library's tokenizer, whose own types do not resolve under "NodeNext". */
interface Hub {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[]; tokens: string[] };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
}

const tokenName = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();

const templateText = z.union([
  z.string(),
  z.array(z.looseObject({ name: z.string(), template: z.string() })).transform((list) => {
    const chosen = list.find(({ name }) => name === "default") ?? list[0];
    return chosen?.template ?? null;
  }),
]);

/** The part of `tokenizer_config.json` that matters here. */
const configSchema = z.looseObject({
  bos_token: tokenName,
  eos_token: tokenName,
  pad_token: tokenName,
  unk_token: tokenName,
  /** Tokens around a text; files of slow tokenizers say it here alone. */
  add_bos_token: z.boolean().nullish(),
  add_eos_token: z.boolean().nullish(),
  chat_template: templateText.nullish(),
});
type TokenizerConfig = z.infer<typeof configSchema>;

/** The library keeps a list of all ids up to the largest; no vocabulary comes near this many. */
const tokenId = z
  .int()
  .nonnegative()
  .max(2 ** 22);

/** The part of `tokenizer.json` without which the library fails with an unclear message. */
const tokenizerSchema = z.looseObject({
  model: z.looseObject({ vocab: z.union([z.record(z.string(), tokenId), z.array(z.unknown())]) }),
  added_tokens: z.array(z.looseObject({ id: tokenId, content: z.string() })).default([]),
  normalizer: z.looseObject({ type: z.string() }).nullable().default(null),
  pre_tokenizer: z.looseObject({ type: z.string() }).nullable().default(null),
  post_processor: z.looseObject({ type: z.string() }).nullable().default(null),
  decoder: z.looseObject({ type: z.string() }).nullable().default(null),
});

const patternSchema = z.union([z.looseObject({ String: z.string() }), z.looseObject({ Regex: z.string() })]);

function parse<Schema extends z.ZodType>(schema: Schema, value: unknown, where: string): z.infer<Schema> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const what = z.prettifyError(parsed.error).replaceAll("\n", " ");
  throw new SidenetError("L-TOKENIZER", `${where}: ${what}. Is it the file of a fast tokenizer?`);
}

/**
 * A tokenizer from a parsed `tokenizer.json` and, where there is one, `tokenizer_config.json`; `name` stands in messages.
 * Decoding never "cleans up" spaces, so what was encoded comes back. Throws `L-TOKENIZER`.
 */
export function loadTokenizer(json: unknown, config: unknown = {}, name = "tokenizer.json"): Tokenizer {
  const tokenizer = parse(tokenizerSchema, json, name);
  const settings = parse(configSchema, config, `${name}, tokenizer_config.json`);
  refuseBadPatterns(tokenizer, name);
  const hub: Hub = guarded(name, () => new HubTokenizer(tokenizer, config as object));
  const vocabSize = 1 + [...hub.get_vocab(true).values()].reduce((largest, id) => Math.max(largest, id), -1);
  const idOf = (token: z.infer<typeof tokenName>): number | null => {
    const content = contentOf(token);
    return content === null ? null : (hub.token_to_id(content) ?? null);
  };
  const eosId = idOf(settings.eos_token);
  const encoder: Encoder = guarded(name, () => {
    return { hub, name, prefix: prefixOf(hub), around: tokensAround(hub, settings, idOf) };
  });
  return withChat(
    {
      encode: (text, options) => guarded(name, () => encode(encoder, text, options)),
      decode: (ids, options) =>
        guarded(name, () => decode(hub, [...ids], options?.skipSpecial ?? false, name)),
      vocabSize,
      bosId: idOf(settings.bos_token),
      eosIds: eosId === null ? [] : [eosId],
    },
    settings.chat_template ?? null,
    specialTokens(settings),
    name,
  );
}

/** Throws `L-TOKENIZER` for a pattern that the library would pass over, or that would keep it busy forever. */
function refuseBadPatterns(value: unknown, name: string): void {
  if (typeof value !== "object" || value === null) return;
  for (const [key, part] of Object.entries(value)) {
    if (key === "vocab" || key === "merges") continue;
    if (key === "pattern" && !patternSchema.safeParse(part).success) {
      const shown = (JSON.stringify(part) ?? "").slice(0, 80);
      throw new SidenetError(
        "L-TOKENIZER",
        `${name}: ${shown} is not a pattern, which is {"String": "..."} or {"Regex": "..."}. Is the file complete?`,
      );
    }
    if (key === "Regex" && typeof part === "string" && nestsRepetitions(part)) {
      throw new SidenetError(
        "L-TOKENIZER",
        `${name}: the expression ${JSON.stringify(part.slice(0, 80))} has repetitions within repetitions, which may take ` +
          "forever. Is it the model's own file?",
      );
    }
    refuseBadPatterns(part, name);
  }
}

/** Runs a part of the library, which finds some mistakes of a file only when it is used. Throws `L-TOKENIZER`. */
function guarded<T>(name: string, run: () => T): T {
  try {
    return run();
  } catch (cause) {
    if (cause instanceof SidenetError) throw cause;
    const why = (cause as Error).message;
    throw new SidenetError(
      "L-TOKENIZER",
      `${name}: its parts do not fit each other (${why}). Is the file complete?`,
      { cause },
    );
  }
}

const contentOf = (token: z.infer<typeof tokenName>): string | null =>
  (typeof token === "string" ? token : token?.content) ?? null;

/** By the names that templates use. */
function specialTokens(settings: TokenizerConfig): SpecialTokens {
  const { bos_token, eos_token, pad_token, unk_token } = settings;
  const named = Object.entries({ bos_token, eos_token, pad_token, unk_token });
  return Object.fromEntries(
    named.flatMap(([key, token]) => {
      const content = contentOf(token);
      return content === null ? [] : [[key, content]];
    }),
  );
}

/** A tokenizer with a chat template, which is read when it is first asked for. */
export function withChat(
  tokenizer: Omit<Tokenizer, "chatTemplate" | "withChatTemplate">,
  source: string | null,
  special: SpecialTokens,
  name: string,
): Tokenizer {
  let template: ChatTemplate | null = null;
  return {
    ...tokenizer,
    chatTemplate: () => {
      if (source !== null) template ??= new ChatTemplate(source, special, name);
      return template;
    },
    withChatTemplate: (other, otherName) => withChat(tokenizer, other, special, otherName),
  };
}

/** What encoding a text needs. */
interface Encoder {
  readonly hub: Hub;
  readonly name: string;
  /** A text, and its ids, that take the blank which would be put in front of another one; null: none is. */
  readonly prefix: { readonly text: string; readonly ids: readonly number[] } | null;
  /** Ids before and after a text that the library does not add by itself. */
  readonly around: { readonly before: readonly number[]; readonly after: readonly number[] };
}

/** A line break is a piece of its own in every vocabulary that marks words by blanks. */
function prefixOf(hub: Hub): Encoder["prefix"] {
  const options = { add_special_tokens: false };
  const marksWords = hub.encode("a", options).tokens[0]?.startsWith("\u2581") ?? false;
  return marksWords ? { text: "\n", ids: hub.encode("\n", options).ids } : null;
}

/** `add_bos_token` and `add_eos_token` of the config, where the tokenizer has no rule of its own for what is around a text. */
function tokensAround(
  hub: Hub,
  settings: TokenizerConfig,
  idOf: (token: z.infer<typeof tokenName>) => number | null,
): Encoder["around"] {
  const own = hub.encode("", { add_special_tokens: true }).ids;
  const wanted = (flag: boolean | null | undefined, token: z.infer<typeof tokenName>): number[] => {
    const id = flag ? idOf(token) : null;
    return id === null || own.includes(id) ? [] : [id];
  };
  return {
    before: wanted(settings.add_bos_token, settings.bos_token),
    after: wanted(settings.add_eos_token, settings.eos_token),
  };
}

function encode(
  { hub, name, prefix, around }: Encoder,
  text: string,
  { addSpecialTokens = true, continues = false }: EncodingOptions = {},
): number[] {
  const lead = continues && prefix !== null ? prefix : null;
  const whole = hub.encode((lead?.text ?? "") + text, { add_special_tokens: addSpecialTokens });
  const { ids, tokens } = whole;
  const unknown = ids.findIndex((id) => !Number.isInteger(id));
  if (unknown >= 0) {
    throw new SidenetError(
      "L-TOKENIZER",
      `${name}: "${tokens[unknown]}" is not in the vocabulary, and there is no token for unknown text. Is the file complete?`,
    );
  }
  if (lead?.ids.every((id, i) => ids[i] === id)) return ids.slice(lead.ids.length);
  return addSpecialTokens ? [...around.before, ...ids, ...around.after] : ids;
}

function decode(hub: Hub, ids: number[], skipSpecial: boolean, name: string): string {
  for (const id of ids) {
    if (hub.id_to_token(id) === undefined) {
      throw new SidenetError(
        "L-TOKEN-ID",
        `${name}: no token has the id ${id}. Do the tokenizer and the model belong together?`,
      );
    }
  }
  if (ids.length === 0) return "";
  return hub.decode(ids, { skip_special_tokens: skipSpecial, clean_up_tokenization_spaces: false });
}
