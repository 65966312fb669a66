/** Text that a quantization is calibrated on, as rows of tokens. */

import { joinRecords, packRows } from "../data/batches.ts";
import type { FieldMapping } from "../data/field-mapping.ts";
import { recordParser } from "../data/record-list.ts";
import { encodeRecord, encodingBy, type TokenRecord } from "../data/records.ts";
import { contextLimit, type ModelConfig } from "../model/config.ts";
import type { TokenBatch } from "../model/decoder.ts";
import type { Tokenizer } from "../text/tokenizer.ts";
import { openRecords } from "./data/record-store.ts";

/** The text that NF4 weights are calibrated on. */
export interface CalibrationOptions {
  /** Data files, as training reads them. */
  readonly data: readonly string[];
  readonly fields?: FieldMapping;
  /** Tokens to take, about: records evenly through the data. Default 8192. */
  readonly tokens?: number;
}

export const CALIBRATION_TOKENS = 8192;

/** Tokens of a row, which several records may share; longer records are cut. */
const ROW_TOKENS = 512;

/** Records spread evenly over the data, until they have so many tokens or the data ends. */
async function takeRecords(
  { data, fields = {}, tokens = CALIBRATION_TOKENS }: CalibrationOptions,
  tokenizer: Tokenizer,
  maxLength: number,
): Promise<TokenRecord[]> {
  const encoding = {
    ...encodingBy(tokenizer),
    maxLength: Number.MAX_SAFE_INTEGER, // what is learned of a record does not matter here, so it is cut afterwards
    cut: false,
  };
  const store = await openRecords(data, recordParser(fields));
  try {
    const taken: TokenRecord[] = [];
    let count = 0;
    for (const index of spread(store.length)) {
      const { record, source } = await store.get(index);
      const { inputIds, labels } = encodeRecord(record, source, tokenizer, encoding);
      const kept = Math.min(inputIds.length, maxLength, tokens - count);
      taken.push({ inputIds: inputIds.slice(0, kept), labels: labels.slice(0, kept), source });
      count += kept;
      if (count >= tokens) break;
    }
    return taken;
  } finally {
    await store.close();
  }
}

/** 0 .. length - 1, each once, such that any first part of them is spread over all: bits in reverse order. */
function* spread(length: number): IterableIterator<number> {
  const bits = Math.ceil(Math.log2(length));
  for (let i = 0; i < 2 ** bits; i++) {
    let index = 0;
    for (let b = 0; b < bits; b++) if (Math.floor(i / 2 ** b) % 2 === 1) index += 2 ** (bits - 1 - b);
    if (index < length) yield index;
  }
}

/** Throws `L-CALIBRATION` for no tokens at all, and what reading and encoding records throws. */
export async function calibrationRows(
  options: CalibrationOptions,
  tokenizer: Tokenizer,
  config: ModelConfig,
): Promise<TokenBatch[]> {
  const length = Math.min(ROW_TOKENS, contextLimit(config));
  const records = await takeRecords(options, tokenizer, length);
  const lengths = records.map(({ inputIds }) => inputIds.length);
  return packRows(lengths, length).map((items) => {
    const { inputIds, segments } = joinRecords(items.map((item) => records[item]));
    return {
      inputIds: Int32Array.from(inputIds),
      batchSize: 1,
      length: inputIds.length,
      attentionMask: null,
      segments: segments ? Int32Array.from(segments) : null,
    };
  });
}
