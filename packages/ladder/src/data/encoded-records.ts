import { Random, SidenetError } from "@sidenet/tensor";
import { type EncodeOptions, type Encoder, encodeRecord, type TokenRecord } from "../records.ts";
import type { TokenDataset } from "./batch-stream.ts";
import { type Indexed, pickItems, type RecordList } from "./record-list.ts";

/** Tokens of records that are kept at hand: some 100 MB. */
const CACHED_TOKENS = 2 ** 22;
/** Data of at most so many records are encoded before the first step, so that mistakes are told at once. */
const CHECKED_RECORDS = 20_000;

/** Records as tokens, encoded when they are asked for; the ones used last are kept. */
export class EncodedRecords implements TokenDataset {
  readonly #records: RecordList;
  readonly #encoder: Encoder;
  readonly #options: EncodeOptions;
  readonly #cache = new Map<number, TokenRecord>();
  #cachedTokens = 0;

  constructor(records: RecordList, encoder: Encoder, options: EncodeOptions) {
    this.#records = records;
    this.#encoder = encoder;
    this.#options = options;
  }

  /** Records there are. */
  get length(): number {
    return this.#records.length;
  }

  /** Throws what `encodeRecord` throws. */
  async get(index: number): Promise<TokenRecord> {
    const known = this.#cache.get(index);
    if (known) {
      this.#cache.delete(index); // a map keeps the order of insertion: the first is the one used longest ago
      this.#cache.set(index, known);
      return known;
    }
    const { record, source } = await this.#records.get(index);
    const encoded = encodeRecord(record, source, this.#encoder, this.#options);
    if (!this.#cache.has(index)) this.#cachedTokens += encoded.inputIds.length; // or another call has been faster
    this.#cache.set(index, encoded);
    for (const [oldest, { inputIds }] of this.#cache) {
      if (this.#cachedTokens <= CACHED_TOKENS) break;
      this.#cache.delete(oldest);
      this.#cachedTokens -= inputIds.length;
    }
    return encoded;
  }

  /** Encodes all records where they are few enough for that to be quick. Throws what `encodeRecord` throws. */
  async check(): Promise<void> {
    if (this.length > CHECKED_RECORDS) return;
    for (let i = 0; i < this.length; i++) await this.get(i);
  }

  /** All of them. */
  async all(): Promise<TokenRecord[]> {
    const records: TokenRecord[] = [];
    for (let i = 0; i < this.length; i++) records.push(await this.get(i));
    return records;
  }
}

/** Held-out records for evaluation: so many from the end, or a share of all, below 1, drawn by a seed. */
export interface HeldOut {
  readonly amount: number;
  readonly isShare: boolean;
}

/** Stream of the draw; epochs and windows of batches have others. */
const SPLIT_STREAM = 2 ** 32 - 1;

/** Parts that share no record. Throws `L-DATA` when one of them would be empty. */
export function splitRecords<T>(
  records: Indexed<T>,
  { amount, isShare }: HeldOut,
  seed: number,
): { train: Indexed<T>; heldOut: Indexed<T> } {
  const count = isShare ? Math.max(1, Math.round(amount * records.length)) : amount;
  if (count <= 0 || count >= records.length) {
    throw new SidenetError(
      "L-DATA",
      `the data has ${records.length} records, and ${count} are to be held out for evaluation. At least one must be held out and one left to ` +
        "train on: give more data or a smaller --held-out.",
    );
  }
  const all = Array.from({ length: records.length }, (_, i) => i);
  const last = isShare ? new Random(seed, SPLIT_STREAM).shuffle([...all]) : all;
  const held = new Set(last.slice(records.length - count));
  return {
    train: pickItems(
      records,
      all.filter((index) => !held.has(index)),
    ),
    heldOut: pickItems(
      records,
      all.filter((index) => held.has(index)),
    ),
  };
}
