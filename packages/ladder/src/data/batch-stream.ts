/** The endless stream of training batches, which can start at any position. */
import { Random, SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checkCounts } from "../check-counts.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import { joinRecords, makeBatch, packRows } from "./batches.ts";
import type { Indexed } from "./record-list.ts";
import type { TokenRecord } from "./records.ts";

/** Encoded records, read on request. */
export type TokenDataset = Indexed<TokenRecord>;

/** A data set of records in memory. */
export const inMemory = (records: readonly TokenRecord[]): TokenDataset => ({
  length: records.length,
  get: async (index) => records[index],
});

/** Every epoch is a new shuffle of all records, determined by the seed. */
class ShuffledOrder {
  readonly #count: number;
  readonly #seed: number;
  #epoch = -1;
  #order: number[] = [];

  constructor(count: number, seed: number) {
    this.#count = count;
    this.#seed = seed;
  }

  /** The record at a position of the endless sequence of epochs. */
  at(position: number): number {
    const epoch = Math.floor(position / this.#count);
    if (epoch !== this.#epoch) {
      this.#epoch = epoch;
      this.#order = new Random(this.#seed, epoch).shuffle(Array.from({ length: this.#count }, (_, i) => i));
    }
    return this.#order[position % this.#count];
  }
}

/** Options of batching. */
export interface BatchStreamOptions {
  /** Rows of a batch. */
  readonly batchSize: number;
  readonly seed: number;
  /** Rows are not padded beyond this length. */
  readonly maxLength: number;
  /** Pack several records into rows of this many tokens; null, the default: one record per row. */
  readonly packLength?: number | null;
  /** Put records of similar length into the same batch. Default false. */
  readonly bucketByLength?: boolean;
}

/** The position of the next batch: plain JSON, for checkpoints. */
export const dataPositionSchema = z.strictObject({
  /** Index of the current window of records. */
  window: z.int().nonnegative(),
  /** Index of the next batch within the window. */
  batch: z.int().nonnegative(),
  /** Within a window: a number made of the lengths of its records, by which its batches were put together. */
  lengths: z.exactOptional(z.int().nonnegative()),
});
/**
 * A position in the stream of batches: the window, and the batch within it, both counted from 0, and what its batches depend on.
 * @interface
 */
export type DataPosition = z.infer<typeof dataPositionSchema>;

/** A batch and the sources of its records. */
export interface StreamedBatch {
  readonly batch: LabeledBatch;
  /** The sources of its records, for error messages. */
  readonly sources: readonly string[];
}

/** Packing and bucketing work on windows of at least this many records, or this many batches. */
const WINDOW_RECORDS = 256;
const WINDOW_BATCHES = 32;
/** Random streams from here on order the batches of windows; those below shuffle epochs. */
const WINDOW_STREAMS = 2 ** 31;

/**
 * Endless batches of a data set. Records come in shuffled epochs, one window at a time. The batches of a window depend only on
 * the data, the options and the window's index, so after `seek` the stream continues exactly as it did before.
 */
export class BatchStream {
  readonly #data: TokenDataset;
  readonly #options: BatchStreamOptions;
  readonly #order: ShuffledOrder;
  readonly #windowSize: number;
  #position: DataPosition = { window: 0, batch: 0 };
  /** The batches of the current window, as rows; null: not read yet. */
  #batches: TokenRecord[][] | null = null;
  /** Of the window that was read last. */
  #lengths = 0;
  /** The latest call of `next`: the one after it starts where it ends. */
  #latest: Promise<unknown> = Promise.resolve();

  /** Throws `L-DATA` for data without records, and `L-OPTION` for a size or a length that is none. */
  constructor(data: TokenDataset, options: BatchStreamOptions) {
    const { batchSize, maxLength, packLength } = options;
    checkCounts({ batchSize, maxLength, packLength: packLength ?? 1 });
    if (data.length === 0)
      throw new SidenetError("L-DATA", "there are no records to train on. Check --data.");
    this.#data = data;
    this.#options = options;
    this.#order = new ShuffledOrder(data.length, options.seed);
    this.#windowSize = windowSize(data.length, options);
  }

  /** The position of the next batch. */
  get position(): DataPosition {
    return this.#position;
  }

  /** Moves to a position of a stream with the same data and options. */
  seek(position: DataPosition): void {
    if (position.window !== this.#position.window) this.#batches = null;
    this.#position = position;
  }

  /** The next batch. Throws what reading a record throws, and `L-RESUME` after a seek to a position that does not exist. */
  next(): Promise<StreamedBatch> {
    const batch = this.#latest.then(() => this.#read());
    this.#latest = batch.catch(() => {}); // its caller is told
    return batch;
  }

  async #read(): Promise<StreamedBatch> {
    this.#batches ??= await this.#readWindow(this.#position.window);
    const { window, batch: index, lengths = this.#lengths } = this.#position;
    const rows = this.#batches[index];
    if (rows === undefined || lengths !== this.#lengths) {
      throw new SidenetError(
        "L-RESUME",
        `batch ${index} of data window ${window} is not what it was: the window's records have other lengths now, or other ` +
          "batches. Resume with the --max-length, the data, the batch size, the seed and the packing of the checkpoint.",
      );
    }
    if (index + 1 < this.#batches.length)
      this.#position = { window, batch: index + 1, lengths: this.#lengths };
    else {
      this.#position = { window: window + 1, batch: 0 };
      this.#batches = null;
    }
    return {
      batch: makeBatch(rows, this.#options.maxLength),
      sources: rows.map((row) => row.source),
    };
  }

  async #readWindow(window: number): Promise<TokenRecord[][]> {
    const { batchSize, seed, packLength = null, bucketByLength = false } = this.#options;
    const first = window * this.#windowSize;
    const records: TokenRecord[] = [];
    for (let i = 0; i < this.#windowSize; i++) records.push(await this.#data.get(this.#order.at(first + i)));
    const random = new Random(seed, WINDOW_STREAMS + window);
    const lengths = records.map((record) => record.inputIds.length);
    this.#lengths = fingerprint(lengths);
    if (packLength !== null) {
      const rows = packRows(lengths, packLength).map((items) => joinRecords(items.map((i) => records[i])));
      return slices(random.shuffle(rows), batchSize);
    }
    if (!bucketByLength) return slices(records, batchSize);
    records.sort((a, b) => a.inputIds.length - b.inputIds.length);
    return random.shuffle(slices(records, batchSize));
  }
}

/** A number that hardly any two lists of numbers have in common (FNV-1a). */
const fingerprint = (numbers: readonly number[]): number =>
  numbers.reduce((hash, number) => Math.imul(hash ^ number, 0x01000193) >>> 0, 0x811c9dc5);

/** Number of records of a window: whole batches, and at most an epoch. */
function windowSize(count: number, { batchSize, packLength, bucketByLength }: BatchStreamOptions): number {
  if (packLength != null) return Math.min(count, Math.max(WINDOW_RECORDS, WINDOW_BATCHES * batchSize));
  if (!bucketByLength) return batchSize;
  return batchSize * Math.max(1, Math.min(WINDOW_BATCHES, Math.floor(count / batchSize)));
}

function slices<T>(items: readonly T[], size: number): T[][] {
  return Array.from({ length: Math.ceil(items.length / size) }, (_, i) =>
    items.slice(i * size, (i + 1) * size),
  );
}
