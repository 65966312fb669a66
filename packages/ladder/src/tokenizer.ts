/** Text to token ids and back, by the hub's own library; this file adds checks, typed errors and exact decoding. */
import { Tokenizer as HubTokenizer } from "@huggingface/tokenizers";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";

export interface Tokenizer {
  /** `addSpecialTokens` (default true): what the tokenizer puts around a text, such as BOS. Special tokens in it are parsed. */
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
  /** Throws `L-TOKEN-ID` on an id outside the vocabulary. `skipSpecial` (default false) leaves control tokens out. */
  decode(ids: Iterable<number>, options?: { skipSpecial?: boolean }): string;
  /** One above the largest id. */
  readonly vocabSize: number;
  readonly bosId: number | null;
  readonly eosIds: readonly number[];
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

/** The part of `tokenizer_config.json` that matters here. */
const configSchema = z.looseObject({ bos_token: tokenName, eos_token: tokenName });

/** The part of `tokenizer.json` without which the library fails with an unclear message. */
const tokenizerSchema = z.looseObject({
  model: z.looseObject({ vocab: z.union([z.record(z.string(), z.int()), z.array(z.unknown())]) }),
  added_tokens: z.array(z.looseObject({ id: z.int(), content: z.string() })).default([]),
  normalizer: z.looseObject({ type: z.string() }).nullable().default(null),
  pre_tokenizer: z.looseObject({ type: z.string() }).nullable().default(null),
  post_processor: z.looseObject({ type: z.string() }).nullable().default(null),
  decoder: z.looseObject({ type: z.string() }).nullable().default(null),
});

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
  const { bos_token, eos_token } = parse(configSchema, config, `${name}, tokenizer_config.json`);
  let hub: Hub;
  try {
    hub = new HubTokenizer(tokenizer, config as object);
  } catch (cause) {
    throw new SidenetError(
      "L-TOKENIZER",
      `${name}: ${(cause as Error).message}. Use a model whose tokenizer.json has supported parts.`,
      { cause },
    );
  }
  const vocabSize = 1 + [...hub.get_vocab(true).values()].reduce((largest, id) => Math.max(largest, id), -1);
  const idOf = (token: z.infer<typeof tokenName>): number | null => {
    const content = typeof token === "string" ? token : token?.content;
    return content === undefined ? null : (hub.token_to_id(content) ?? null);
  };
  const eosId = idOf(eos_token);
  return {
    encode: (text, options) => encode(hub, text, options?.addSpecialTokens ?? true, name),
    decode: (ids, options) => decode(hub, [...ids], options?.skipSpecial ?? false, name),
    vocabSize,
    bosId: idOf(bos_token),
    eosIds: eosId === null ? [] : [eosId],
  };
}

function encode(hub: Hub, text: string, addSpecialTokens: boolean, name: string): number[] {
  const { ids, tokens } = hub.encode(text, { add_special_tokens: addSpecialTokens });
  const unknown = ids.findIndex((id) => !Number.isInteger(id));
  if (unknown >= 0) {
    throw new SidenetError(
      "L-TOKENIZER",
      `${name}: "${tokens[unknown]}" is not in the vocabulary, and there is no token for unknown text. Is the file complete?`,
    );
  }
  return ids;
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
