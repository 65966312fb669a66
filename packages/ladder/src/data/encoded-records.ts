import { Random, SidenetError } from "@sidenet/tensor";
import type { TokenDataset } from "./batch-stream.ts";
import { type Indexed, pickItems, type RecordList } from "./record-list.ts";
import { type EncodeOptions, type Encoder, encodeRecord, type TokenRecord } from "./records.ts";

/** Tokens in the cache of encoded records: about 100 MB. */
const CACHED_TOKENS = 2 ** 22;
/** Data of at most this many records are encoded before the first step, so that mistakes are found at once. */
const CHECKED_RECORDS = 20_000;

/** Records as tokens, encoded on request, with a cache of the most recently used. */
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

  /** Number of records. */
  get length(): number {
    return this.#records.length;
  }

  /** Throws what `encodeRecord` throws. */
  async get(index: number): Promise<TokenRecord> {
    const known = this.#cache.get(index);
    if (known) {
      this.#cache.delete(index); // a map keeps insertion order: its first entry is the least recently used
      this.#cache.set(index, known);
      return known;
    }
    const { record, source } = await this.#records.get(index);
    const encoded = encodeRecord(record, source, this.#encoder, this.#options);
    if (!this.#cache.has(index)) this.#cachedTokens += encoded.inputIds.length; // unless a concurrent call has added it
    this.#cache.set(index, encoded);
    for (const [oldest, { inputIds }] of this.#cache) {
      if (this.#cachedTokens <= CACHED_TOKENS) break;
      this.#cache.delete(oldest);
      this.#cachedTokens -= inputIds.length;
    }
    return encoded;
  }

  /** Encodes all records, unless there are too many for that to be quick. Throws what `encodeRecord` throws. */
  async check(): Promise<void> {
    if (this.length > CHECKED_RECORDS) return;
    for (let i = 0; i < this.length; i++) await this.get(i);
  }

  /** All records. */
  async all(): Promise<TokenRecord[]> {
    const records: TokenRecord[] = [];
    for (let i = 0; i < this.length; i++) records.push(await this.get(i));
    return records;
  }
}

/** Records held out for evaluation: a number of records from the end, or a share below 1 of all, drawn by the seed. */
export interface HeldOut {
  readonly amount: number;
  readonly isShare: boolean;
}

/** Random stream of the draw, apart from those of epochs and windows of batches. */
const SPLIT_STREAM = 2 ** 32 - 1;

/** Splits records into disjoint parts. Throws `L-DATA` when one of them would be empty. */
export function splitRecords<T>(
  records: Indexed<T>,
  { amount, isShare }: HeldOut,
  seed: number,
): { train: Indexed<T>; heldOut: Indexed<T> } {
  const count = isShare ? Math.max(1, Math.round(amount * records.length)) : amount;
  if (count <= 0 || count >= records.length) {
    throw new SidenetError(
      "L-DATA",
      `--held-out keeps ${count} of ${records.length} records for evaluation: at least one must be held out and one left to train on. ` +
        "Give more data, a smaller --held-out, or --held-out 0 to train without an evaluation.",
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
