/** Streamed token ids as text, without incomplete characters or parts of a stop string. */
import type { Tokenizer } from "../text/tokenizer.ts";

/** What the tokenizer writes for bytes that are not a complete character. */
const REPLACEMENT = "\ufffd";

/** Number of preceding tokens that are decoded together with a text, since they decide how it begins. */
const CONTEXT_TOKENS = 8;

/**
 * Decodes ids one by one. Bytes that may still become a character are buffered until they do, or until `end`, so that the
 * returned pieces, joined, equal `decode` of all ids.
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  readonly #skipSpecial: boolean;
  /** Ids before and since the last point at which all text had been returned. */
  #before: readonly number[];
  #pending: number[] = [];

  /** `promptIds`: the tokens before the text. `skipSpecial`: whether special tokens are left out. */
  constructor(tokenizer: Tokenizer, promptIds: readonly number[] = [], skipSpecial = true) {
    this.#tokenizer = tokenizer;
    this.#skipSpecial = skipSpecial;
    this.#before = promptIds.slice(-CONTEXT_TOKENS);
  }

  /** The text that this id completes. */
  push(id: number): string {
    this.#pending.push(id);
    const text = this.#newText();
    if (text === "" || text.endsWith(REPLACEMENT)) return "";
    this.#before = this.#pending;
    this.#pending = [];
    return text;
  }

  /** The buffered rest, incomplete characters included. */
  end(): string {
    const text = this.#newText();
    this.#before = [];
    this.#pending = [];
    return text;
  }

  /** How a token decodes may depend on the one before it (a leading space), so they are decoded together. */
  #newText(): string {
    const decode = (ids: readonly number[]) =>
      this.#tokenizer.decode(ids, { skipSpecial: this.#skipSpecial });
    return decode([...this.#before, ...this.#pending]).slice(decode(this.#before).length);
  }
}

/** Finds stop strings in streamed text, of which it buffers whatever may be the beginning of one. */
export class StopMatcher {
  readonly #stops: readonly string[];
  #buffered = "";
  #isStopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop !== "");
  }

  /** Whether a stop string was found. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  /** The text that is certainly before any stop string. */
  push(text: string): string {
    if (this.#isStopped) return "";
    const all = this.#buffered + text;
    const found = this.#stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#isStopped = true;
      this.#buffered = "";
      return all.slice(0, Math.min(...found));
    }
    const buffered = Math.max(0, ...this.#stops.map((stop) => overlap(all, stop)));
    this.#buffered = all.slice(all.length - buffered);
    return all.slice(0, all.length - buffered);
  }

  /** The buffered text, which turned out not to be a stop string. */
  end(): string {
    const rest = this.#buffered;
    this.#buffered = "";
    return rest;
  }
}

/** Length of the longest suffix of `text`, which does not contain `stop`, that is a prefix of it. */
function overlap(text: string, stop: string): number {
  for (let length = stop.length - 1; length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
