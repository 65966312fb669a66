import { loadTokenizer, type Tokenizer } from "../src/text/tokenizer.ts";

/** The printable characters that byte-level BPE writes for the bytes 0..255. */
export const BYTE_SYMBOLS = (() => {
  const kept = (byte: number) => (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
  let next = 256;
  return Array.from({ length: 256 }, (_, byte) => String.fromCharCode(kept(byte) ? byte : next++));
})();

const BYTE_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];

/** One token a byte: ids 0..2 are special, byte b is b + 3. */
export function byteTokenizer(config: object = {}): { tokenizer: Tokenizer; json: object } {
  const vocab = Object.fromEntries([...BYTE_SPECIAL, ...BYTE_SYMBOLS].map((token, id) => [token, id]));
  const byteLevel = { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false };
  const json = {
    added_tokens: BYTE_SPECIAL.map((content, id) => ({ id, content, special: true, normalized: false })),
    normalizer: null,
    pre_tokenizer: byteLevel,
    post_processor: null,
    decoder: byteLevel,
    model: { type: "BPE", vocab, merges: [] },
  };
  return { json, tokenizer: loadTokenizer(json, { eos_token: "<|im_end|>", ...config }) };
}

/** A vocabulary of SentencePiece's kind: "▁" marks blanks, one is put in front, the rest are bytes. */
export function wordTokenizer(config: object = {}): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, b) => `<0x${b.toString(16).toUpperCase().padStart(2, "0")}>`);
  const tokens = ["<unk>", "<s>", "</s>", ...bytes, "▁", "a", "b", "c", "ab", "▁ab"];
  const replace = (from: string, content: string) => ({
    type: "Replace",
    pattern: { String: from },
    content,
  });
  const json = {
    added_tokens: ["<unk>", "<s>", "</s>"].map((content, id) => ({
      id,
      content,
      special: true,
      normalized: false,
    })),
    normalizer: { type: "Sequence", normalizers: [{ type: "Prepend", prepend: "▁" }, replace(" ", "▁")] },
    pre_tokenizer: null,
    post_processor: null,
    decoder: {
      type: "Sequence",
      decoders: [
        replace("▁", " "),
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
      merges: [
        ["a", "b"],
        ["▁", "ab"],
      ],
      unk_token: "<unk>",
      byte_fallback: true,
      fuse_unk: true,
    },
  };
  return loadTokenizer(json, config);
}
