/** Tokenizers, by Hugging Face's library with checks, typed errors and exact decoding added. */
import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { nestsRepetitions } from "../regular-expression.ts";
import { ChatTemplate, type SpecialTokens } from "./chat-template.ts";
import { keepByteOrderMarks, portableTokenizer } from "./tokenizer-json.ts";

/** Options of encoding a text. */
export interface EncodingOptions {
  /** Add the tokenizer's tokens around a text, such as BOS. Default true. */
  readonly addSpecialTokens?: boolean;
  /**
   * The text continues another one, which ends with the token of this id, or, if true, with ordinary text: the space that some
   * tokenizers prepend to a text is left out, unless they prepend it after such a token too. Default false.
   */
  readonly continues?: boolean | number;
}

/** A model's tokenizer. */
export interface Tokenizer {
  /** Token ids of a text. Special tokens that are written out in it are recognized. */
  encode(text: string, options?: EncodingOptions): number[];
  /** The text of token ids. `skipSpecial` (default false) drops special tokens. Throws `L-TOKEN-ID` for an unknown id. */
  decode(ids: Iterable<number>, options?: { skipSpecial?: boolean }): string;
  /** The largest id plus one. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  /** Ids that end a text: the tokenizer's own first, then those at which the model stops, and the end of its chat template's turns. */
  readonly eosIds: readonly number[];
  /** The last token of the prefix that texts continue; absent where there is none. */
  readonly prefixEnd?: number;
  /** The model's chat template, or null. Throws `L-CHAT-TEMPLATE`. */
  chatTemplate(): ChatTemplate | null;
  /** The same tokenizer with another chat template; `name` appears in error messages. Throws `L-CHAT-TEMPLATE`. */
  withChatTemplate(source: string, name: string): Tokenizer;
}

/** The part of the library's tokenizer that is used; its own types do not resolve under "NodeNext". */
interface Hub {
  encode(text: string, options: { add_special_tokens: boolean }): { ids: number[]; tokens: string[] };
  decode(
    ids: number[],
    options: { skip_special_tokens: boolean; clean_up_tokenization_spaces: boolean },
  ): string;
  token_to_id(token: string): number | undefined;
  id_to_token(id: number): string | undefined;
  get_vocab(withAddedTokens: boolean): Map<string, number>;
  readonly decoder: unknown;
}

const tokenName = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();

const templateText = z.union([
  z.string(),
  z.array(z.looseObject({ name: z.string(), template: z.string() })).transform((list) => {
    const chosen = list.find(({ name }) => name === "default") ?? list[0];
    return chosen?.template;
  }),
]);

/** The fields of `tokenizer_config.json` that are used. */
const configSchema = z.looseObject({
  bos_token: tokenName,
  eos_token: tokenName,
  pad_token: tokenName,
  unk_token: tokenName,
  /** Whether BOS and EOS are added; files of slow tokenizers say so only here. */
  add_bos_token: z.boolean().nullish(),
  add_eos_token: z.boolean().nullish(),
  chat_template: templateText.nullish(),
});
type TokenizerConfig = z.infer<typeof configSchema>;

/** The chat template in a parsed `tokenizer_config.json`; null where it has none. */
export const chatTemplateIn = (config: unknown): string | null =>
  configSchema.safeParse(config).data?.chat_template ?? null;

/** A limit on ids, since the library allocates a list up to the largest one. */
const MAX_ID = 2 ** 22;
const tokenId = z.int().nonnegative().max(MAX_ID);

const VOCABULARY = `must map tokens to whole numbers from 0 to ${MAX_ID}`;

/** Token ids by token. Not a `z.record`, which loses a token named "__proto__". */
export const vocabularySchema = z.custom<Readonly<Record<string, number>>>(
  (value) =>
    typeof value === "object" &&
    value !== null &&
    Object.values(value).every((id) => Number.isInteger(id) && id >= 0 && id <= MAX_ID),
  VOCABULARY,
);

/** The fields of `tokenizer.json` without which the library fails with an unclear message. */
const tokenizerSchema = z.looseObject({
  model: z.looseObject({ vocab: z.union([z.array(z.unknown()), vocabularySchema], VOCABULARY) }),
  added_tokens: z
    .array(z.looseObject({ id: tokenId, content: z.string(), single_word: z.boolean().optional() }))
    .default([]),
  normalizer: z.looseObject({ type: z.string() }).nullable().default(null),
  pre_tokenizer: z.looseObject({ type: z.string() }).nullable().default(null),
  post_processor: z.looseObject({ type: z.string() }).nullable().default(null),
  decoder: z.looseObject({ type: z.string() }).nullable().default(null),
});

const patternSchema = z.union([z.looseObject({ String: z.string() }), z.looseObject({ Regex: z.string() })]);

const parse = <Schema extends z.ZodType>(schema: Schema, value: unknown, where: string): z.infer<Schema> =>
  checked(schema, value, (why) => {
    return new SidenetError("L-TOKENIZER", `${where}: ${why}. Is it the file of a fast tokenizer?`);
  });

/**
 * A tokenizer from a parsed `tokenizer.json` and an optional `tokenizer_config.json`. `name` appears in error messages;
 * `moreEosIds` end a text besides the tokenizer's own, as the ids in a model's `generation_config.json` do. Decoding does not
 * "clean up" spaces, so it returns the text that was encoded. Throws `L-TOKENIZER`.
 */
export function loadTokenizer(
  json: unknown,
  config: unknown = {},
  name = "tokenizer.json",
  moreEosIds: readonly number[] = [],
): Tokenizer {
  const tokenizer = parse(tokenizerSchema, json, name);
  const settings = parse(configSchema, config, `${name}, tokenizer_config.json`);
  refuseBadPatterns(tokenizer, name);
  refuseSingleWords(tokenizer, name);
  const hub: Hub = guarded(name, () => new HubTokenizer(portableTokenizer(tokenizer), config as object));
  keepByteOrderMarks(hub.decoder);
  const vocabSize = 1 + [...hub.get_vocab(true).values()].reduce((largest, id) => Math.max(largest, id), -1);
  const idOf = (token: z.infer<typeof tokenName>): number | null => {
    const content = contentOf(token);
    return content === null ? null : (hub.token_to_id(content) ?? null);
  };
  const eosId = idOf(settings.eos_token);
  const encoder: Encoder = guarded(name, () => {
    const added = new Map(tokenizer.added_tokens.map(({ id, content }) => [id, content]));
    return { hub, name, added, prefix: prefixOf(hub), around: tokensAround(hub, settings, idOf) };
  });
  return withChat(
    {
      encode: (text, options) => guarded(name, () => encode(encoder, text, options)),
      decode: (ids, options) =>
        guarded(name, () => decode(hub, [...ids], options?.skipSpecial ?? false, name)),
      vocabSize,
      bosId: idOf(settings.bos_token),
      eosIds: [
        ...new Set([eosId ?? [], moreEosIds.filter((id) => hub.id_to_token(id) !== undefined)].flat()),
      ],
    },
    settings.chat_template ?? null,
    specialTokens(settings),
    name,
  );
}

/** Throws `L-TOKENIZER` for a pattern that the library would ignore, or that could hang it. */
function refuseBadPatterns(value: unknown, name: string): void {
  if (typeof value !== "object" || value === null) return;
  for (const [key, part] of Object.entries(value)) {
    if (key === "vocab" || key === "merges") continue;
    if (key === "pattern" && !patternSchema.safeParse(part).success) {
      const shown = (JSON.stringify(part) ?? "").slice(0, 80);
      throw new SidenetError(
        "L-TOKENIZER",
        `${name}: ${shown} is not a pattern of the form {"String": "..."} or {"Regex": "..."}. Is the file complete?`,
      );
    }
    if (key === "Regex" && typeof part === "string" && nestsRepetitions(part)) {
      throw new SidenetError(
        "L-TOKENIZER",
        `${name}: the expression ${JSON.stringify(part.slice(0, 80))} has repetitions within repetitions, which may never ` +
          "end. Is it the model's own file?",
      );
    }
    refuseBadPatterns(part, name);
  }
}

/** Throws `L-TOKENIZER` for an added token that is found as a whole word only: the library would find it within words too. */
function refuseSingleWords({ added_tokens }: z.infer<typeof tokenizerSchema>, name: string): void {
  const found = added_tokens.find(({ single_word }) => single_word);
  if (found === undefined) return;
  throw new SidenetError(
    "L-TOKENIZER",
    `${name}: the added token ${JSON.stringify(found.content)} is a single_word, which is not supported. Set it to false if ` +
      "the token never occurs within a word.",
  );
}

/** Runs library code with its errors as `L-TOKENIZER`: it finds some mistakes of a file only when used. */
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

/** Special tokens by the names that templates use. */
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

/** Adds a chat template to a tokenizer. A mistake in it is reported where it is used. */
function withChat(
  tokenizer: Omit<Tokenizer, "chatTemplate" | "withChatTemplate">,
  source: string | null,
  special: SpecialTokens,
  name: string,
): Tokenizer {
  let template: ChatTemplate | null = null;
  const chatTemplate = () => {
    if (source !== null) template ??= new ChatTemplate(source, special, name);
    return template;
  };
  const turnEnd = turnEndId({ ...tokenizer, chatTemplate });
  return {
    ...tokenizer,
    eosIds: [...new Set(turnEnd === null ? tokenizer.eosIds : [...tokenizer.eosIds, turnEnd])],
    chatTemplate,
    withChatTemplate: (other, otherName) => withChat(tokenizer, other, special, otherName),
  };
}

/** The chat template of a model. Throws `L-CHAT-TEMPLATE` where it has none; `otherwise` says what else can be done then. */
export function requireChatTemplate(
  tokenizer: Pick<Tokenizer, "chatTemplate">,
  model: string,
  otherwise: string,
): ChatTemplate {
  const template = tokenizer.chatTemplate();
  if (template !== null) return template;
  throw new SidenetError(
    "L-CHAT-TEMPLATE",
    `${model} has no chat template. Give one with --chat-template, or ${otherwise}.`,
  );
}

/** BOS where the tokenizer itself puts it in front of a text, else null. */
export const leadingBos = ({ encode, bosId }: Pick<Tokenizer, "encode" | "bosId">): number | null =>
  encode("").includes(bosId ?? -1) ? bosId : null;

/**
 * The token that a text without a beginning of its own starts from: BOS, or the end of a text before it. After a prefix either would
 * say that the prefix belongs to another text, so its last token is read once more. Throws `L-PROMPT`.
 */
export function startId({
  prefixEnd,
  bosId,
  eosIds,
}: Pick<Tokenizer, "prefixEnd" | "bosId" | "eosIds">): number {
  const id = prefixEnd ?? bosId ?? eosIds[0];
  if (id !== undefined) return id;
  throw new SidenetError(
    "L-PROMPT",
    "there is nothing that the first token of a text could follow: the tokenizer has neither BOS nor EOS. Give a prompt.",
  );
}

/**
 * The special token that ends an assistant's turn: the first that the chat template writes after an answer. Base models often
 * have a template whose turns end in another token than their texts. Null where there is none, or the template refuses to render.
 */
export function turnEndId(tokenizer: Pick<Tokenizer, "encode" | "decode" | "chatTemplate">): number | null {
  const answer = "answer";
  const turns = [
    { role: "user", content: "question" },
    { role: "assistant", content: answer },
  ];
  let text: string;
  try {
    text = tokenizer.chatTemplate()?.render(turns, false) ?? "";
  } catch (error) {
    if (error instanceof SidenetError) return null;
    throw error;
  }
  const after = text.slice(text.lastIndexOf(answer) + answer.length);
  const isSpecial = (id: number) => tokenizer.decode([id]) !== tokenizer.decode([id], { skipSpecial: true });
  return tokenizer.encode(after, { addSpecialTokens: false }).find(isSpecial) ?? null;
}

/** A text and its ids, to put in front of a text that continues another one. */
interface Lead {
  readonly text: string;
  readonly ids: readonly number[];
}

/** The library's tokenizer with what encoding a text needs besides. */
interface Encoder {
  readonly hub: Hub;
  readonly name: string;
  /** Contents of added tokens, by id. */
  readonly added: ReadonlyMap<number, string>;
  /** The lead after ordinary text, so that no space is added; null: none ever is. */
  readonly prefix: Lead | null;
  /** Special ids before and after a text that the library does not add by itself. */
  readonly around: { readonly before: readonly number[]; readonly after: readonly number[] };
}

/** The lead after ordinary text: a line break, which is a token of its own in most vocabularies that mark words by spaces. */
function prefixOf(hub: Hub): Lead | null {
  const options = { add_special_tokens: false };
  const marksWords = hub.encode("a", options).tokens[0]?.startsWith("\u2581") ?? false;
  return marksWords ? { text: "\n", ids: hub.encode("\n", options).ids } : null;
}

/** The ids for `add_bos_token` and `add_eos_token` of the config that the tokenizer's own rules do not add. */
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

function leadOf({ added, prefix }: Encoder, continues: boolean | number): Lead | null {
  const text = typeof continues === "number" ? added.get(continues) : undefined;
  if (text !== undefined) return { text, ids: [Number(continues)] };
  return continues === false ? null : prefix;
}

function encode(encoder: Encoder, text: string, options: EncodingOptions = {}): number[] {
  const { hub, name, around } = encoder;
  const { addSpecialTokens = true, continues = false } = options;
  const lead = leadOf(encoder, continues);
  const whole = hub.encode((lead?.text ?? "") + text, {
    add_special_tokens: lead === null && addSpecialTokens,
  });
  const { ids, tokens } = whole;
  const unknown = ids.findIndex((id) => !Number.isInteger(id));
  if (unknown >= 0) {
    throw new SidenetError(
      "L-TOKENIZER",
      `${name}: "${tokens[unknown]}" is not in the vocabulary, and there is no token for unknown text. Is the file complete?`,
    );
  }
  if (lead?.ids.every((id, i) => ids[i] === id)) return ids.slice(lead.ids.length);
  if (lead !== null) return encode(encoder, text, { addSpecialTokens: false }); // the text merges with its lead
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
