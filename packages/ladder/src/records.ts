/** Records of text data, as token sequences with labels and as batches. */
import { Random, SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { LabeledBatch } from "./trainer.ts";

/** Where a record came from, for messages: "train.jsonl, line 7". */
export type Source = string;

const text = z.string();

/** `text`: every token is learned. `prompt` and `completion`: only the completion is. Other fields are ignored. */
export const recordSchema = z.union([
  z.looseObject({ prompt: text, completion: text }),
  z.looseObject({ text }),
]);
export type TextRecord = z.infer<typeof recordSchema>;

/** Parses one record. Throws `L-RECORD`, naming its place and what is wrong. */
export function parseRecord(value: unknown, source: Source): TextRecord {
  const parsed = recordSchema.safeParse(value);
  if (parsed.success) return parsed.data;
  const found =
    value !== null && typeof value === "object" && !Array.isArray(value)
      ? `the fields ${Object.entries(value)
          .map(([key, field]) => `${key} (${Array.isArray(field) ? "array" : typeof field})`)
          .join(", ")}`
      : `${Array.isArray(value) ? "an array" : JSON.stringify(value)}`;
  throw new SidenetError(
    "L-RECORD",
    `${source}: a record is {"text": "..."} or {"prompt": "...", "completion": "..."}, this one has ${found}. ` +
      "Map other fields with --text, or --prompt and --completion.",
  );
}

/** What reading records needs of a tokenizer. */
export interface Encoder {
  encode(text: string, options?: { addSpecialTokens?: boolean }): number[];
}

/** One sequence; labels are aligned with inputIds, -100 is not scored. */
export interface TokenRecord {
  readonly inputIds: readonly number[];
  readonly labels: readonly number[];
  readonly source: Source;
}

export interface EncodeOptions {
  readonly bosId: number | null;
  /** Ends each record and is learned with it; null: nothing does. */
  readonly eosId: number | null;
  /** Tokens a record may have. */
  readonly maxLength: number;
  /** Cut longer records instead of refusing them. */
  readonly cut: boolean;
}

/**
 * Tokens and labels of a record. Prompt and completion are encoded apart, so that their border is a token's border.
 * Throws `L-TOO-LONG`, or `L-NOTHING-TO-LEARN` when no label is left after the first token.
 */
export function encodeRecord(
  record: TextRecord,
  source: Source,
  encoder: Encoder,
  options: EncodeOptions,
): TokenRecord {
  const { bosId, eosId, maxLength, cut } = options;
  const plain = { addSpecialTokens: false };
  const [prompt, learned] =
    "completion" in record && "prompt" in record
      ? [encoder.encode(record.prompt as string, plain), encoder.encode(record.completion as string, plain)]
      : [[], encoder.encode(record.text as string, plain)];
  const start = bosId === null ? prompt : [bosId, ...prompt];
  const end = eosId === null ? learned : [...learned, eosId];
  const inputIds = [...start, ...end];
  if (inputIds.length > maxLength && !cut) {
    throw new SidenetError(
      "L-TOO-LONG",
      `${source}: ${inputIds.length} tokens are more than the model's context of ${maxLength}. Shorten the record, or cut ` +
        "long ones with --max-length.",
    );
  }
  const labels = [...start.map(() => -100), ...end].slice(0, maxLength);
  // The first token is predicted from nothing, so its label never counts.
  if (!labels.slice(1).some((label) => label !== -100)) {
    throw new SidenetError(
      "L-NOTHING-TO-LEARN",
      `${source}: nothing is left to learn from in its first ${maxLength} tokens (the prompt takes ${start.length}). ` +
        "Raise --max-length or remove the record.",
    );
  }
  return { inputIds: inputIds.slice(0, maxLength), labels, source };
}

/** Lengths are padded up to a multiple of this, so that shapes, and with them buffers, repeat. */
const LENGTH_MULTIPLE = 32;

/** Pads records to one length on the right; padding is hidden and not scored. */
export function makeBatch(records: readonly TokenRecord[], padId: number, maxLength: number): LabeledBatch {
  const longest = Math.max(...records.map((record) => record.inputIds.length));
  const length = Math.min(
    Math.ceil(longest / LENGTH_MULTIPLE) * LENGTH_MULTIPLE,
    Math.max(longest, maxLength),
  );
  const size = records.length * length;
  const inputIds = new Int32Array(size).fill(padId);
  const labels = new Int32Array(size).fill(-100);
  const attentionMask = new Uint8Array(size);
  for (const [row, record] of records.entries()) {
    inputIds.set(record.inputIds, row * length);
    labels.set(record.labels, row * length);
    attentionMask.fill(1, row * length, row * length + record.inputIds.length);
  }
  return { inputIds, labels, attentionMask, batchSize: records.length, length };
}

/** All records in order, in batches. */
export function inBatches(
  records: readonly TokenRecord[],
  batchSize: number,
  padId: number,
  maxLength: number,
): LabeledBatch[] {
  const batches: LabeledBatch[] = [];
  for (let i = 0; i < records.length; i += batchSize) {
    batches.push(makeBatch(records.slice(i, i + batchSize), padId, maxLength));
  }
  return batches;
}

/**
 * Which records a step trains on: every epoch is a new shuffle of all of them, and a step's batch depends on seed and step
 * alone, so a run can go on at any step.
 */
export class BatchSampler {
  readonly #count: number;
  readonly #batchSize: number;
  readonly #seed: number;
  #epoch = -1;
  #order: number[] = [];

  constructor(count: number, batchSize: number, seed: number) {
    this.#count = count;
    this.#batchSize = batchSize;
    this.#seed = seed;
  }

  /** Indices of the records of a step, counted from 0. */
  indices(step: number): number[] {
    return Array.from({ length: this.#batchSize }, (_, i) => this.#at(step * this.#batchSize + i));
  }

  #at(position: number): number {
    const epoch = Math.floor(position / this.#count);
    if (epoch !== this.#epoch) {
      this.#epoch = epoch;
      this.#order = new Random(this.#seed, epoch).shuffle(Array.from({ length: this.#count }, (_, i) => i));
    }
    return this.#order[position % this.#count];
  }
}
