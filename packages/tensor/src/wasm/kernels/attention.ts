/**
 * Streaming attention: blocks of queries against blocks of keys. No T x S matrix exists; a block's scores live in the
 * thread's scratch. Products are tiles over packed panels.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32, f32x4, type I32, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
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
import { expOf, type Function1, logOf } from "./math.ts";
import { STREAM } from "./tasks.ts";
import { forVectors, maxLanes, sumLanes } from "./vectors.ts";

/** The score of what is not seen: finite, and no other score reaches it. */
const HIDDEN = -3.0e38;

export const attention = defineKernel(
  {
    ...words("q", "keys", "values", "visible", "segments", "y", "lse"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const { head, first, rows, batch, keyHead } = emitQueryTask(f, frame, p);
    const block = new Block(f, frame, rows, p.d);
    const [left, scores, weights, sums, stats] = [p.leftAt, p.scoresAt, p.weightsAt, p.sumsAt, p.statsAt].map(
      (offset) => block.place(offset),
    );
    const query = emitHead(f, { src: p.q, heads: p.h, s: p.t, d: p.d }, head);
    block.pack(at(query.base, first, query.row), query.row, p.d, left);
    block.clear(sums);
    const row = f.i32();
    f.for(row, 0, rows, 1, () =>
      f.do(f32.store(at(stats, row, 8), HIDDEN), f32.store(at(stats, row, 8), 0, 4)),
    );
    const headKeys = f.i32(
      at(p.keys, keyHead, i32.mul(i32.mul(panelsOf(p.s, PANEL_COLS), PANEL_COL_BYTES), p.d)),
    );
    const panelBytes = f.i32(i32.mul(p.s, PANEL_COL_BYTES));
    const headValues = f.i32(at(p.values, i32.mul(keyHead, block.columnPanels), panelBytes));
    const end = f.i32(i32.min(p.s, f.i32(i32.add(i32.add(first, rows), p.offset))));
    const [start, count, begin] = [f.i32(), f.i32(), f.i32()];
    const segments = emitSegments(f, p, batch);
    emitSkip(f, segments, { first: i32.add(first, p.offset), rows, shift: 0 }, { from: begin, to: end });
    const exp = expOf(f);
    f.for(start, begin, end, STREAM, () => {
      f.set(count, i32.min(f.i32(i32.sub(end, start)), STREAM));
      block.score(left, f.i32(at(headKeys, start, i32.mul(p.d, 4))), count, scores);
      const visible = f.i32(at(p.visible, i32.add(i32.mul(batch, p.s), start), 4));
      f.for(row, 0, rows, 1, () => {
        const seen = i32.sub(i32.add(i32.add(first, row), i32.add(p.offset, 1)), start);
        const io = { scores: at(scores, row, SCORE_ROW), visible, sums: at(sums, row, block.sumRow) };
        const position = i32.add(i32.add(first, row), p.offset);
        const marks = { segments, own: segments.of(position), segmentsAt: segments.at(start) };
        const extent = { count, seen, scale: p.scale, block, ...marks };
        emitSoftmaxRow(f, exp, { ...io, stats: at(stats, row, 8) }, extent);
      });
      block.pack(scores, SCORE_ROW, count, weights);
      block.gather(weights, f.i32(at(headValues, start, PANEL_COL_BYTES)), panelBytes, count, sums);
    });
    const out = i32.add(p.y, i32.sub(at(query.base, first, query.row), p.q));
    block.write(sums, out, query.row, (index) => {
      const total = f32.load(at(stats, index, 8), 4);
      return f32.select(f32.gt(total, 0), f32.div(1, total), 0);
    });
    f.if(p.lse, () => emitLse(f, { rows, stats, lse: p.lse }, { query, q: p.q, first, d: p.d }));
  },
);

/** One row of scores to weights relative to the largest so far; what was summed before is scaled to that. */
function emitSoftmaxRow(
  f: FunctionBuilder,
  exp: Function1,
  io: Readonly<Record<"scores" | "visible" | "sums" | "stats", I32>>,
  extent: { count: Local<"i32">; seen: I32; scale: Local<"f32">; block: Block } & {
    segments: Segments;
    own: V128;
    segmentsAt: I32;
  },
): void {
  const { count, scale, block } = extent;
  const [scores, visible, sums, stats] = [io.scores, io.visible, io.sums, io.stats].map((address) =>
    f.i32(address),
  );
  const limit = f.v128(i32x4.splat(i32.min(f.i32(extent.seen), count)));
  const position = f.v128(v128.constant([0, 1, 2, 3]));
  const own = f.v128(extent.own);
  const segmentsAt = f.i32(extent.segmentsAt);
  const four = f.v128(i32x4.splat(4));
  const hidden = f.v128(f32x4.splat(HIDDEN));
  const factor = f.v128(f32x4.splat(scale));
  const best = f.v128(hidden);
  const [from, end] = [f.i32(scores), f.i32(at(scores, i32.shrU(i32.add(count, 3), 2), 16))];
  f.while(i32.ltU(from, end), () => {
    const among = i32x4.eq(own, v128.load(segmentsAt));
    const seen = v128.and(v128.and(i32x4.gtS(limit, position), v128.load(visible)), among);
    const score = f.v128(v128.bitselect(f32x4.mul(v128.load(from), factor), hidden, seen));
    f.do(v128.store(from, score));
    f.set(best, f32x4.pmax(best, score));
    f.set(position, i32x4.add(position, four));
    f.set(from, i32.add(from, 16));
    f.set(visible, i32.add(visible, 16));
    f.set(segmentsAt, i32.add(segmentsAt, extent.segments.step));
  });
  const before = f.f32(f32.load(stats));
  const now = f.f32(f32.max(before, maxLanes(f, [best])));
  const total = f.v128(f32x4.splat(0));
  f.set(best, f32x4.splat(now));
  f.set(from, scores);
  f.while(i32.ltU(from, end), () => {
    const score = f.v128(v128.load(from));
    const weight = f.v128(v128.andNot(exp(f32x4.sub(score, best)), f32x4.eq(score, hidden)));
    f.do(v128.store(from, weight));
    f.set(total, f32x4.add(total, weight));
    f.set(from, i32.add(from, 16));
  });
  const shrink = f.v128(exp(f32x4.splat(f32.sub(before, now))));
  const kept = f32.mul(f32.load(stats, 4), f32x4.lane(shrink, 0));
  f.do(f32.store(stats, f32.add(kept, sumLanes(f, [total])), 4), f32.store(stats, now));
  f.if(f32.gt(now, before), () => {
    forVectors(f, i32.mul(block.columnPanels, PANEL_COLS), [sums], ({ load, store }) =>
      store(sums, f32x4.mul(load(sums), shrink)),
    );
  });
}

function emitLse(
  f: FunctionBuilder,
  { rows, stats, lse }: Readonly<Record<"rows" | "stats" | "lse", Local<"i32">>>,
  {
    query,
    q,
    first,
    d,
  }: { query: ReturnType<typeof emitHead> } & Readonly<Record<"q" | "first" | "d", Local<"i32">>>,
): void {
  const log = logOf(f);
  const row = f.i32();
  f.for(row, 0, rows, 1, () => {
    const element = i32.sub(at(query.base, i32.add(first, row), query.row), q);
    const to = f.i32(at(lse, i32.divU(element, i32.mul(d, 4)), 8));
    const total = f.f32(f32.load(at(stats, row, 8), 4));
    const logSum = f32.select(f32.gt(total, 0), f32x4.lane(log(f32x4.splat(total)), 0), 0);
    f.do(f32.store(to, f32.load(at(stats, row, 8))), f32.store(to, logSum, 4));
  });
}
