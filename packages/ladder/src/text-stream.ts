/** Token ids as text while they come: no half characters, and nothing of a stop string. */
import type { Tokenizer } from "./tokenizer.ts";

/** What the decoder writes for bytes that are no character, or not yet. */
const REPLACEMENT = "\ufffd";

/** So many tokens before a text decide how it begins. */
const CONTEXT_TOKENS = 8;

/**
 * Decodes ids one by one. Bytes that may still become a character are held back until they did, or until `end`, so what
 * was given, joined, is what `decode` makes of all ids.
 */
export class TextStream {
  readonly #tokenizer: Tokenizer;
  /** Ids from the last border at which all text was given: of what came before it, and since. */
  #before: readonly number[];
  #pending: number[] = [];

  /** `promptIds`: what the text goes on from. */
  constructor(tokenizer: Tokenizer, promptIds: readonly number[] = []) {
    this.#tokenizer = tokenizer;
    this.#before = promptIds.slice(-CONTEXT_TOKENS);
  }

  /** The text that this id completes; special tokens are left out. */
  push(id: number): string {
    this.#pending.push(id);
    const text = this.#newText();
    if (text === "" || text.endsWith(REPLACEMENT)) return "";
    this.#before = this.#pending;
    this.#pending = [];
    return text;
  }

  /** What is left, broken characters included. */
  end(): string {
    const text = this.#newText();
    this.#before = [];
    this.#pending = [];
    return text;
  }

  /** Decoding a token may depend on the one before it (a leading blank), so both ends are decoded together. */
  #newText(): string {
    const decode = (ids: readonly number[]) => this.#tokenizer.decode(ids, { skipSpecial: true });
    return decode([...this.#before, ...this.#pending]).slice(decode(this.#before).length);
  }
}

/** Looks for stop strings in text that comes in parts, and holds back what may be the beginning of one. */
export class StopMatcher {
  readonly #stops: readonly string[];
  #held = "";
  #isStopped = false;

  constructor(stops: readonly string[]) {
    this.#stops = stops.filter((stop) => stop !== "");
  }

  /** Whether a stop string has come. */
  get isStopped(): boolean {
    return this.#isStopped;
  }

  /** The text that is sure to be wanted; nothing after a stop string, or of it. */
  push(text: string): string {
    if (this.#isStopped) return "";
    const all = this.#held + text;
    const found = this.#stops.map((stop) => all.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#isStopped = true;
      this.#held = "";
      return all.slice(0, Math.min(...found));
    }
    const held = Math.max(0, ...this.#stops.map((stop) => overlap(all, stop)));
    this.#held = all.slice(all.length - held);
    return all.slice(0, all.length - held);
  }

  /** What was held back and became no stop string. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }
}

/** Length of the longest end of `text` that `stop` begins with. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(stop.length - 1, text.length); length > 0; length--) {
    if (text.endsWith(stop.slice(0, length))) return length;
  }
  return 0;
}
