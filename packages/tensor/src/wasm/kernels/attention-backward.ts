/** Attention's gradients from the shift that the forward pass kept: the same blocks, weights computed again. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import {
  at,
  Block,
  EXTENTS,
  emitHead,
  emitQueryTask,
  emitSegments,
  emitSkip,
  PLACES,
  panelsOf,
  SCORE_ROW,
  type Segments,
} from "./attention-block.ts";
import { defineKernel, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { expOf } from "./math.ts";
import { STREAM } from "./tasks.ts";

type Words<K extends string> = Readonly<Record<K, Local<"i32">>>;

/** A window of what streams past: scores become weights, dy · v becomes d loss / d score. */
type Window = Words<"start" | "count" | "scores" | "slopes">;

/** Bytes from one of the three values of `queryShifts` to the next. */
const planeBytes = (f: FunctionBuilder, { batches, h, t }: Words<"batches" | "h" | "t">): Local<"i32"> =>
  f.i32(i32.mul(i32.mul(i32.mul(batches, h), t), 4));

/** d loss / d score of a weight. Of a key that has all of a query's, dy · v - dy · y is 0, and what is left of it rounding. */
function slopesOf(f: FunctionBuilder): (weight: Local<"v128">, difference: V128) => V128 {
  const one = f.v128(f32x4.splat(1));
  return (weight, difference) => v128.and(f32x4.mul(weight, difference), f32x4.lt(weight, one));
}

/** Code that turns the scores of rows of queries, over a window of keys, into gradients of scores. */
function queryRows(
  f: FunctionBuilder,
  p: Words<"batches" | "h" | "t" | "s" | "offset" | "shifts" | "visible"> & { scale: Local<"f32"> },
  { head, batch, first, rows }: Words<"head" | "batch" | "first" | "rows">,
  segments: Segments,
): (window: Window) => void {
  const plane = planeBytes(f, p);
  const shift = f.i32(at(p.shifts, i32.add(i32.mul(head, p.t), first), 4));
  const [row, at1, at2, bits, segmentsAt] = Array.from({ length: 5 }, () => f.i32());
  const exp = expOf(f);
  const slopeOf = slopesOf(f);
  const [max, logSum, delta, limit, position, own] = Array.from({ length: 6 }, () => f.v128());
  const [scale, four] = [f.v128(f32x4.splat(p.scale)), f.v128(i32x4.splat(4))];
  return ({ start, count, scores, slopes }) =>
    f.for(row, 0, rows, 1, () => {
      const word = f.i32(at(shift, row, 4));
      f.set(max, v128.load32Splat(word));
      f.set(logSum, v128.load32Splat(i32.add(word, plane)));
      f.set(delta, v128.load32Splat(i32.add(word, i32.mul(plane, 2))));
      const seen = i32.sub(i32.add(i32.add(first, row), i32.add(p.offset, 1)), start);
      f.set(limit, i32x4.splat(seen));
      f.set(position, v128.constant([0, 1, 2, 3]));
      f.set(at1, at(scores, row, SCORE_ROW));
      f.set(at2, at(slopes, row, SCORE_ROW));
      f.set(bits, at(p.visible, i32.add(i32.mul(batch, p.s), start), 4));
      f.set(own, segments.of(i32.add(i32.add(first, row), p.offset)));
      f.set(segmentsAt, segments.at(start));
      const last = f.i32(i32.add(at1, i32.mul(count, 4)));
      f.while(i32.ltU(at1, last), () => {
        const among = v128.and(i32x4.eq(own, v128.load(segmentsAt)), v128.load(bits));
        const visible = v128.and(i32x4.gtS(limit, position), among);
        const score = f32x4.mul(v128.load(at1), scale);
        const weight = f.v128(exp(f32x4.sub(f32x4.sub(score, max), logSum)));
        const slope = slopeOf(weight, f32x4.sub(v128.load(at2), delta));
        f.do(v128.store(at1, v128.and(slope, visible)));
        f.set(position, i32x4.add(position, four));
        for (const pointer of [at1, at2, bits]) f.set(pointer, i32.add(pointer, 16));
        f.set(segmentsAt, i32.add(segmentsAt, segments.step));
      });
    });
}

/** dq of a block of queries; `valueRows` are panels of rows, `keyColumns` of columns. */
export const attentionBackwardQ = defineKernel(
  {
    ...words("dy", "q", "keyRows", "keyColumns", "valueRows", "visible", "segments"),
    ...words("shifts", "dq"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const queries = emitQueryTask(f, frame, p);
    const { head, first, rows, keyHead } = queries;
    const block = new Block(f, frame, rows, p.d);
    const places = [p.leftAt, p.otherLeftAt, p.scoresAt, p.otherScoresAt, p.weightsAt, p.sumsAt];
    const [left, dyLeft, scores, slopes, weights, sums] = places.map((offset) => block.place(offset));
    const query = emitHead(f, { src: p.q, heads: p.h, s: p.t, d: p.d }, head);
    const offset = f.i32(i32.sub(at(query.base, first, query.row), p.q));
    block.pack(i32.add(p.q, offset), query.row, p.d, left);
    block.pack(i32.add(p.dy, offset), query.row, p.d, dyLeft);
    block.clear(sums);
    const rowPanels = f.i32(i32.mul(i32.mul(panelsOf(p.s, PANEL_COLS), PANEL_COL_BYTES), p.d));
    const panelBytes = f.i32(i32.mul(p.s, PANEL_COL_BYTES));
    const keys = f.i32(at(p.keyRows, keyHead, rowPanels));
    const values = f.i32(at(p.valueRows, keyHead, rowPanels));
    const columns = f.i32(at(p.keyColumns, i32.mul(keyHead, block.columnPanels), panelBytes));
    const end = f.i32(i32.min(p.s, f.i32(i32.add(i32.add(first, rows), p.offset))));
    const [start, count, begin] = [f.i32(), f.i32(), f.i32()];
    const segments = emitSegments(f, p, queries.batch);
    emitSkip(f, segments, { first: i32.add(first, p.offset), rows, shift: 0 }, { from: begin, to: end });
    const toSlopes = queryRows(f, p, queries, segments);
    f.for(start, begin, end, STREAM, () => {
      f.set(count, i32.min(f.i32(i32.sub(end, start)), STREAM));
      block.score(left, f.i32(at(keys, start, i32.mul(p.d, 4))), count, scores);
      block.score(dyLeft, f.i32(at(values, start, i32.mul(p.d, 4))), count, slopes);
      toSlopes({ start, count, scores, slopes });
      block.pack(scores, SCORE_ROW, count, weights);
      block.gather(weights, f.i32(at(columns, start, PANEL_COL_BYTES)), panelBytes, count, sums);
    });
    block.write(sums, i32.add(p.dq, offset), query.row, () => p.scale);
  },
);

/** Code that turns the scores of rows of keys, over a window of queries, into weights, and dy · v into gradients of scores. */
function keyRows(
  f: FunctionBuilder,
  p: Words<"batches" | "h" | "g" | "t" | "s" | "offset" | "shifts" | "visible"> & { scale: Local<"f32"> },
  { head, batch, first, rows }: Words<"head" | "batch" | "first" | "rows">,
  segments: Segments,
): (window: Window) => void {
  const plane = planeBytes(f, p);
  const bits = f.i32(at(p.visible, i32.add(i32.mul(batch, p.s), first), 4));
  const [row, at1, at2, shift, segmentsAt] = Array.from({ length: 5 }, () => f.i32());
  const exp = expOf(f);
  const slopeOf = slopesOf(f);
  const [limit, position, mask, own] = Array.from({ length: 4 }, () => f.v128());
  const [scale, four] = [f.v128(f32x4.splat(p.scale)), f.v128(i32x4.splat(4))];
  return ({ start, count, scores, slopes }) =>
    f.for(row, 0, rows, 1, () => {
      const unseen = i32.sub(i32.sub(i32.add(first, row), i32.add(p.offset, 1)), start);
      f.set(limit, i32x4.splat(unseen)); // the last query that does not see the key
      f.set(mask, v128.load32Splat(at(bits, row, 4)));
      f.set(position, v128.constant([0, 1, 2, 3]));
      f.set(at1, at(scores, row, SCORE_ROW));
      f.set(at2, at(slopes, row, SCORE_ROW));
      f.set(shift, at(p.shifts, i32.add(i32.mul(head, p.t), start), 4));
      f.set(own, segments.of(i32.add(first, row)));
      f.set(segmentsAt, segments.at(i32.add(start, p.offset)));
      const last = f.i32(i32.add(at1, i32.mul(count, 4)));
      f.while(i32.ltU(at1, last), () => {
        const among = v128.and(i32x4.eq(own, v128.load(segmentsAt)), mask);
        const visible = f.v128(v128.and(i32x4.gtS(position, limit), among));
        const score = f32x4.mul(v128.load(at1), scale);
        const below = f32x4.sub(f32x4.sub(score, v128.load(shift)), v128.load(i32.add(shift, plane)));
        const weight = f.v128(v128.and(exp(below), visible));
        const delta = v128.load(i32.add(shift, i32.mul(plane, 2)));
        const slope = slopeOf(weight, f32x4.sub(v128.load(at2), delta));
        f.do(v128.store(at2, slope), v128.store(at1, weight));
        f.set(position, i32x4.add(position, four));
        for (const pointer of [at1, at2, shift]) f.set(pointer, i32.add(pointer, 16));
        f.set(segmentsAt, i32.add(segmentsAt, segments.step));
      });
    });
}

/** dk and dv of a block of keys, over all queries and query heads that see them. */
export const attentionBackwardKV = defineKernel(
  {
    ...words("k", "v", "queryRows", "queryColumns", "dyRows", "dyColumns"),
    ...words("visible", "segments", "shifts", "dk", "dv"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const keyHeads = f.i32(i32.mul(p.batches, p.g));
    const keyHead = f.i32(i32.remU(frame.task, keyHeads));
    const first = f.i32(i32.mul(i32.divU(frame.task, keyHeads), p.blockRows)); // early keys are seen the most
    const rows = f.i32(i32.min(f.i32(i32.sub(p.s, first)), p.blockRows));
    const block = new Block(f, frame, rows, p.d);
    const [left, valueLeft] = [block.place(p.leftAt), block.place(p.otherLeftAt)];
    const [scores, slopes] = [block.place(p.scoresAt), block.place(p.otherScoresAt)];
    const [weights, dkSums, dvSums] = [p.weightsAt, p.sumsAt, p.otherSumsAt].map((to) => block.place(to));
    const key = emitHead(f, { src: p.k, heads: p.g, s: p.s, d: p.d }, keyHead);
    const offset = f.i32(i32.sub(at(key.base, first, key.row), p.k));
    block.pack(i32.add(p.k, offset), key.row, p.d, left);
    block.pack(i32.add(p.v, offset), key.row, p.d, valueLeft);
    block.clear(dkSums);
    block.clear(dvSums);
    const rowPanels = f.i32(i32.mul(i32.mul(panelsOf(p.t, PANEL_COLS), PANEL_COL_BYTES), p.d));
    const panelBytes = f.i32(i32.mul(p.t, PANEL_COL_BYTES));
    // The first query that sees the first key, and panels begin at multiples of 8.
    const begin = f.i32(i32.sub(first, p.offset));
    f.set(begin, i32.select(i32.gtS(begin, 0), i32.and(begin, -PANEL_COLS), 0));
    const group = f.i32(i32.divU(p.h, p.g));
    const [head, start, count] = [f.i32(), f.i32(), f.i32()];
    const headEnd = f.i32(i32.mul(i32.add(keyHead, 1), group));
    const end = f.i32(p.t);
    const batch = f.i32(i32.divU(keyHead, p.g));
    const segments = emitSegments(f, p, batch);
    emitSkip(f, segments, { first, rows, shift: p.offset }, { from: end, to: begin, down: true });
    const toWeightsAndSlopes = keyRows(f, p, { head, batch, first, rows }, segments);
    f.for(head, i32.mul(keyHead, group), headEnd, 1, () => {
      const headRows = i32.mul(head, rowPanels);
      const headColumns = i32.mul(i32.mul(head, block.columnPanels), panelBytes);
      f.for(start, begin, end, STREAM, () => {
        f.set(count, i32.min(f.i32(i32.sub(end, start)), STREAM));
        const panelAt = f.i32(i32.add(headRows, i32.mul(i32.mul(start, p.d), 4)));
        block.score(left, f.i32(i32.add(p.queryRows, panelAt)), count, scores);
        block.score(valueLeft, f.i32(i32.add(p.dyRows, panelAt)), count, slopes);
        toWeightsAndSlopes({ start, count, scores, slopes });
        const columnAt = f.i32(i32.add(headColumns, i32.mul(start, PANEL_COL_BYTES)));
        block.pack(scores, SCORE_ROW, count, weights);
        block.gather(weights, f.i32(i32.add(p.dyColumns, columnAt)), panelBytes, count, dvSums);
        block.pack(slopes, SCORE_ROW, count, weights);
        block.gather(weights, f.i32(i32.add(p.queryColumns, columnAt)), panelBytes, count, dkSums);
      });
    });
    block.write(dkSums, i32.add(p.dk, offset), key.row, () => p.scale);
    const one = f.f32(1);
    block.write(dvSums, i32.add(p.dv, offset), key.row, () => one);
  },
);
