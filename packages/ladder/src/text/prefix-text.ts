/** Texts after a prefix (`Decoder.readPrefix`): the prefix is the beginning, and every text continues it. */
import { type EncodingOptions, leadingBos, type Tokenizer } from "./tokenizer.ts";

/** A word, which is what records and questions begin with. */
const WORD = "A";

/**
 * The ids of a prefix: the beginning of a text, with BOS where the tokenizer puts it there. It is encoded as before a word: there,
 * to tokenizers such as GPT-2's, a blank line is two tokens, and at the end of a text one.
 */
export function encodePrefix(tokenizer: Tokenizer, text: string): number[] {
  const alone = tokenizer.encode(text, { addSpecialTokens: false });
  const word = tokenizer.encode(WORD, { addSpecialTokens: false, continues: true });
  const before = tokenizer.encode(text + WORD, { addSpecialTokens: false }).slice(0, -word.length);
  const ids = tokenizer.decode(before) === tokenizer.decode(alone) ? before : alone; // the word may merge with the last of the text
  const bosId = leadingBos(tokenizer);
  return bosId === null || ids[0] === bosId ? ids : [bosId, ...ids];
}

/**
 * The tokenizer of texts after a prefix of these ids, the same where there are none. It neither adds BOS nor keeps the one that a
 * chat template writes: to a model, BOS in the middle says that what came before it belongs to another text.
 */
export function afterPrefix(tokenizer: Tokenizer, prefixIds: readonly number[]): Tokenizer {
  const last = prefixIds.at(-1);
  if (last === undefined) return tokenizer;
  return {
    ...tokenizer,
    prefixEnd: last,
    encode(text: string, { continues = false }: EncodingOptions = {}) {
      if (continues !== false) return tokenizer.encode(text, { addSpecialTokens: false, continues });
      const ids = tokenizer.encode(text, { addSpecialTokens: false, continues: last });
      return ids[0] === tokenizer.bosId ? ids.slice(1) : ids;
    },
    withChatTemplate: (source, name) => afterPrefix(tokenizer.withChatTemplate(source, name), prefixIds),
  };
}
