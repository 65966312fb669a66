/** Batches from token records: packing of records into rows, and padding of rows. */

import { SidenetError } from "@sidenet/tensor";
import { checkCounts } from "../check-counts.ts";
import type { LabeledBatch } from "../model/batch-loss.ts";
import type { TokenRecord } from "./records.ts";

/** Default multiple to which lengths are padded, so that buffer sizes repeat. */
export const LENGTH_MULTIPLE = 32;

/** Segment id of padding. */
const NO_SEGMENT = -1;

/**
 * Packs several records into one row. Attention stays within each (`segments`), and the first token of each is not scored, since
 * nothing comes before it. Positions continue through the row, which is equivalent, since rope depends on distances only.
 */
export function joinRecords(records: readonly TokenRecord[]): TokenRecord {
  if (records.length === 1) return records[0];
  return {
    inputIds: records.flatMap((record) => record.inputIds),
    labels: records.flatMap(({ labels }) => labels.with(0, -100)),
    segments: records.flatMap((record, i) => record.inputIds.map(() => i)),
    source: records.map((record) => record.source).join("; "),
  };
}

/**
 * A batch of rows, padded on the right to one length with token 0, whatever the model's padding token: padding is masked and not
 * scored. The length is that of the longest row, rounded up to a `multiple`, so that lengths repeat, but not past `maxLength`. That
 * limits the padding only: a row that is longer is not cut. Throws `L-DATA` without a row, and `L-OPTION` for a length that is none.
 */
export function makeBatch(
  rows: readonly TokenRecord[],
  maxLength: number,
  multiple = LENGTH_MULTIPLE,
): LabeledBatch {
  checkCounts({ maxLength, multiple });
  if (rows.length === 0)
    throw new SidenetError("L-DATA", "a batch has no rows. Give it at least one record.");
  const longest = Math.max(...rows.map((row) => row.inputIds.length));
  const length = Math.min(Math.ceil(longest / multiple) * multiple, Math.max(longest, maxLength));
  const size = rows.length * length;
  const inputIds = new Int32Array(size);
  const labels = new Int32Array(size).fill(-100);
  const attentionMask = new Uint8Array(size);
  const packed = rows.some((row) => row.segments !== undefined);
  const segments = packed ? new Int32Array(size).fill(NO_SEGMENT) : null;
  for (const [r, row] of rows.entries()) {
    const end = r * length + row.inputIds.length;
    inputIds.set(row.inputIds, r * length);
    labels.set(row.labels, r * length);
    attentionMask.fill(1, r * length, end);
    if (row.segments) segments?.set(row.segments, r * length);
    else segments?.fill(0, r * length, end);
  }
  return { inputIds, labels, attentionMask, segments, batchSize: rows.length, length };
}

/** All records in order, in batches. Throws `L-OPTION` for a size or a length that is none. */
export function inBatches(
  records: readonly TokenRecord[],
  batchSize: number,
  maxLength: number,
): LabeledBatch[] {
  checkCounts({ batchSize });
  const batches: LabeledBatch[] = [];
  for (let i = 0; i < records.length; i += batchSize) {
    batches.push(makeBatch(records.slice(i, i + batchSize), maxLength));
  }
  return batches;
}

/**
 * Packs records into rows of at most `capacity` tokens; a longer record has a row of its own. Best fit decreasing (Johnson 1974:
 * at most 11/9 of the optimal number of rows). Returns indices into `lengths`.
 */
export function packRows(lengths: readonly number[], capacity: number): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[b] - lengths[a]);
  const rows: { free: number; items: number[] }[] = [];
  for (const item of order) {
    let best: (typeof rows)[number] | null = null;
    for (const row of rows) {
      if (row.free >= lengths[item] && (best === null || row.free < best.free)) best = row;
    }
    if (best === null) {
      best = { free: capacity, items: [] };
      rows.push(best);
    }
    best.items.push(item);
    best.free -= lengths[item];
  }
  return rows.map((row) => row.items);
}
