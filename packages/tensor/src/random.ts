import { SidenetError } from "./errors.ts";

/**
 * Philox 4x32-10, a counter-based generator: a number depends only on seed, stream and index, not on earlier draws. Source:
 * Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
 */
const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57] as const;
const WEYL = [0x9e3779b9, 0xbb67ae85] as const;
const ROUNDS = 10;

/** Whether a number is an integer from 0 to 2^32 - 1, as seeds, streams and counters have to be. */
export const isWord = (n: number): boolean => Number.isInteger(n) && n >= 0 && n < 2 ** 32;

/** High and low words of a 32 x 32-bit product. */
function multiply(a: number, b: number): [high: number, low: number] {
  const a0 = a & 0xffff;
  const a1 = a >>> 16;
  const b0 = b & 0xffff;
  const b1 = b >>> 16;
  const middle = a1 * b0 + ((a0 * b0) >>> 16);
  const carry = (middle & 0xffff) + a0 * b1;
  return [(a1 * b1 + Math.floor(middle / 65536) + Math.floor(carry / 65536)) >>> 0, Math.imul(a, b) >>> 0];
}

/** Four random words of a 128-bit counter under a 64-bit key. */
export function philox(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): [number, number, number, number] {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < ROUNDS; round++) {
    const [high0, low0] = multiply(MULTIPLIERS[0], c0);
    const [high1, low1] = multiply(MULTIPLIERS[1], c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    k0 = (k0 + WEYL[0]) >>> 0;
    k1 = (k1 + WEYL[1]) >>> 0;
  }
  return [c0, c1, c2, c3];
}

/** The random numbers of one seed and stream: the n-th draw is always the same, independent of other streams. */
export class Random {
  readonly #key: readonly [number, number];
  readonly #stream: number;
  #block = 0;
  #words: number[] = [];

  /** Throws `T-VALUE` unless `seed` and `stream` are integers from 0 to 2^32 - 1. */
  constructor(seed: number, stream = 0) {
    for (const [name, value] of Object.entries({ seed, stream })) {
      if (isWord(value)) continue;
      throw new SidenetError(
        "T-VALUE",
        `Random: ${name} is ${value}, wanted a whole number from 0 to 2^32 - 1.`,
      );
    }
    this.#key = [seed, 0];
    this.#stream = stream;
  }

  /** 32 random bits. */
  word(): number {
    if (this.#words.length === 0) {
      this.#words = philox(
        [this.#block % 2 ** 32, Math.floor(this.#block / 2 ** 32), this.#stream, 0],
        this.#key,
      ).reverse();
      this.#block++;
    }
    return this.#words.pop()!;
  }

  /** Uniform in (0, 1), never 0 or 1. */
  uniform(): number {
    return (this.word() + 0.5) / 2 ** 32;
  }

  /** Integer in 0 .. limit - 1, without bias. Throws `T-VALUE` unless `limit` is a whole number from 1 to 2^32. */
  below(limit: number): number {
    if (!isWord(limit - 1)) {
      throw new SidenetError("T-VALUE", `Random: below(${limit}) wants a whole number from 1 to 2^32.`);
    }
    const fair = 2 ** 32 - (2 ** 32 % limit);
    for (;;) {
      const word = this.word();
      if (word < fair) return word % limit;
    }
  }

  /** `count` normal numbers of mean 0. Source: Box and Muller 1958. */
  normals(count: number, deviation = 1): Float32Array {
    const values = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = deviation * Math.sqrt(-2 * Math.log(this.uniform()));
      const angle = 2 * Math.PI * this.uniform();
      values[i] = radius * Math.cos(angle);
      if (i + 1 < count) values[i + 1] = radius * Math.sin(angle);
    }
    return values;
  }

  /** Shuffles in place. Source: Fisher and Yates, as Durstenfeld 1964. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.below(i + 1);
      [items[i], items[j]] = [items[j], items[i]];
    }
    return items;
  }
}
