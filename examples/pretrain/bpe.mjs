// Byte-pair encoding over bytes, learned from texts: the tokenizer of GPT-2, with a vocabulary of any size.

/** How GPT-2 splits a text into words, each with the space before it. No merge crosses a word boundary. */
const WORDS = /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+/gu;

/** Each byte as a printable character: its own, or, if that is not printable, one from U+0100 on. */
const BYTES = (() => {
  const printable = (byte) => (byte > 32 && byte < 127) || (byte > 160 && byte < 256 && byte !== 173);
  let free = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(printable(byte) ? byte : free++));
})();

/** The distinct words of the texts as lists of symbols, with their counts. */
function countWords(texts) {
  const counts = new Map();
  for (const text of texts) {
    for (const word of text.match(WORDS) ?? []) counts.set(word, (counts.get(word) ?? 0) + 1);
  }
  const encoder = new TextEncoder();
  return [...counts].map(([word, count]) => ({
    symbols: Array.from(encoder.encode(word), (byte) => BYTES[byte]),
    count,
  }));
}

/** The count of each pair of neighbouring symbols and the words that contain it, updated as pairs are merged. */
class PairTable {
  #pairs = new Map();

  constructor(words) {
    for (const word of words) this.add(word, 1);
  }

  /** Adds (sign 1) or removes (sign -1) the pairs of a word. */
  add(word, sign) {
    for (let i = 0; i + 1 < word.symbols.length; i++) {
      const key = `${word.symbols[i]} ${word.symbols[i + 1]}`; // no symbol holds a space: byte 32 is "Ġ"
      const entry = this.#pairs.get(key) ?? { count: 0, words: new Set() };
      entry.count += sign * word.count;
      entry.words.add(word);
      this.#pairs.set(key, entry);
    }
  }

  /** The most frequent pair; of equally frequent ones the first in code-unit order, so that the result is reproducible. */
  best() {
    let best = null;
    for (const [key, { count, words }] of this.#pairs) {
      if (count === 0) this.#pairs.delete(key);
      else if (best === null || count > best.count || (count === best.count && key < best.key))
        best = { key, count, words };
    }
    return best;
  }

  delete(key) {
    this.#pairs.delete(key);
  }
}

function mergeIn(symbols, left, right) {
  const merged = [];
  for (let i = 0; i < symbols.length; i++) {
    if (symbols[i] === left && symbols[i + 1] === right) {
      merged.push(left + right);
      i++;
    } else merged.push(symbols[i]);
  }
  return merged;
}

/**
 * Learns a vocabulary of at most `size` entries: the special tokens, the 256 bytes, then one entry per merge of the most
 * frequent pair. Stops early if no pair occurs twice.
 */
export function trainBpe(texts, size, specials) {
  const words = countWords(texts);
  const table = new PairTable(words);
  const vocab = new Map([...specials, ...BYTES].map((token, id) => [token, id]));
  const merges = [];
  while (vocab.size < size) {
    const pair = table.best();
    if (pair === null || pair.count < 2) break;
    const [left, right] = pair.key.split(" ");
    merges.push(pair.key);
    vocab.set(left + right, vocab.size);
    for (const word of pair.words) {
      table.add(word, -1);
      word.symbols = mergeIn(word.symbols, left, right);
      table.add(word, 1);
    }
    table.delete(pair.key);
  }
  return { vocab: Object.fromEntries(vocab), merges };
}

/** The contents of a Hugging Face `tokenizer.json`. */
export function tokenizerJson({ vocab, merges }, specials) {
  return {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: specials.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: true },
    post_processor: { type: "ByteLevel", add_prefix_space: true, trim_offsets: false, use_regex: true },
    decoder: { type: "ByteLevel", add_prefix_space: true, trim_offsets: true, use_regex: true },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab,
      merges,
    },
  };
}
