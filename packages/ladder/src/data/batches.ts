/** Token records as batches: several records in one row, rows of one length. */

import { SidenetError } from "@sidenet/tensor";
import type { LabeledBatch } from "../batch-loss.ts";
import type { TokenRecord } from "../records.ts";

/** Lengths are padded up to a multiple of this, so that shapes, and with them buffers, repeat. */
export const LENGTH_MULTIPLE = 32;

/** Marks padding among the ids of segments. */
const NO_SEGMENT = -1;

/**
 * Several records as one row. Attention stays inside each (`segments`), and the first token of each is predicted from nothing,
 * so it is not scored. Positions run on through the row: rope turns queries and keys by their distance alone.
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

/** Pads rows to one length on the right; padding is hidden and not scored. Throws `L-DATA` where there is no row. */
export function makeBatch(
  rows: readonly TokenRecord[],
  padId: number,
  maxLength: number,
  multiple = LENGTH_MULTIPLE,
): LabeledBatch {
  if (rows.length === 0)
    throw new SidenetError("L-DATA", "a batch has no rows. Give it at least one record.");
  const longest = Math.max(...rows.map((row) => row.inputIds.length));
  const length = Math.min(Math.ceil(longest / multiple) * multiple, Math.max(longest, maxLength));
  const size = rows.length * length;
  const inputIds = new Int32Array(size).fill(padId);
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
 * Groups records into rows of at most `capacity` tokens; one that is longer has a row of its own. Best fit, the longest
 * first, which leaves the least room (Johnson 1974: at most 11/9 of the fewest rows). Returns indices into `lengths`.
 */
export function packRows(lengths: readonly number[], capacity: number): number[][] {
  const order = [...lengths.keys()].sort((a, b) => lengths[b] - lengths[a] || a - b);
  const rows: { room: number; items: number[] }[] = [];
  for (const item of order) {
    let best: (typeof rows)[number] | null = null;
    for (const row of rows) {
      if (row.room >= lengths[item] && (best === null || row.room < best.room)) best = row;
    }
    if (best === null) {
      best = { room: Math.max(capacity, lengths[item]), items: [] };
      rows.push(best);
    }
    best.items.push(item);
    best.room -= lengths[item];
  }
  return rows.map((row) => row.items);
}
