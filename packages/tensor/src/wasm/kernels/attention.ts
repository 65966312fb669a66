/**
 * Streaming attention: blocks of queries against blocks of keys, forward, and backward from the shift that the forward pass
 * kept. No T x S matrix exists; a block's scores live in the thread's scratch. Products are tiles over packed panels.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, type I32, i32, i32x4, v128 } from "../assembler/instructions.ts";
import { defineKernel, type Frame, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { expOf, type Function1, logOf } from "./math.ts";
import { PACK_STEPS, STREAM } from "./tasks.ts";
import { accumulators, forVectors, maxLanes, sumLanes } from "./vectors.ts";

/** The score of what is not seen: finite, and no other score reaches it. */
const HIDDEN = -3.0e38;
/** Bytes from row to row of a block of scores. */
const SCORE_ROW = 4 * STREAM;

const at = (base: I32, index: I32, bytes: I32): Expr<"i32"> => i32.add(base, i32.mul(index, bytes));
const panelsOf = (count: I32, width: number): Expr<"i32"> => i32.divU(i32.add(count, width - 1), width);

/** Panels of a head's rows, as columns of a product; a task is PACK_STEPS rows of one head. */
export const packHeadRows = defineKernel(
  { src: "i32", dst: "i32", heads: "i32", s: "i32", d: "i32", parts: "i32" },
  (f, { src, dst, heads, s, d, parts }, { task, library: { packRows } }) => {
    const { base, row, head } = emitHead(f, { src, heads, s, d }, i32.divU(task, parts));
    const [first, from] = [f.i32(), f.i32()];
    f.set(from, i32.mul(i32.remU(task, parts), PACK_STEPS));
    const end = f.i32(i32.min(s, i32.add(from, PACK_STEPS)));
    const target = f.i32(at(dst, head, i32.mul(i32.mul(panelsOf(s, PANEL_COLS), PANEL_COL_BYTES), d)));
    f.for(first, from, end, PANEL_COLS, () => {
      const rows = i32.min(f.i32(i32.sub(s, first)), PANEL_COLS);
      f.call(packRows.right.f32, at(base, first, row), row, rows, d, at(target, first, i32.mul(d, 4)));
    });
  },
);

/** Panels of a head's columns, [panel][s][8]; a task is PACK_STEPS rows of one head. */
export const packHeadColumns = defineKernel(
  { src: "i32", dst: "i32", heads: "i32", s: "i32", d: "i32", parts: "i32" },
  (f, { src, dst, heads, s, d, parts }, { task, library: { packColumns } }) => {
    const { base, row, head } = emitHead(f, { src, heads, s, d }, i32.divU(task, parts));
    const first = f.i32(i32.mul(i32.remU(task, parts), PACK_STEPS));
    const rows = f.i32(i32.min(f.i32(i32.sub(s, first)), PACK_STEPS));
    const panels = f.i32(panelsOf(d, PANEL_COLS));
    const target = f.i32(at(dst, i32.mul(i32.mul(head, panels), s), PANEL_COL_BYTES));
    const panel = f.i32();
    f.for(panel, 0, panels, 1, () => {
      const from = i32.add(at(base, first, row), i32.mul(panel, PANEL_COL_BYTES));
      f.call(
        packColumns.right.f32,
        from,
        row,
        rows,
        at(target, i32.add(i32.mul(panel, s), first), PANEL_COL_BYTES),
      );
    });
  },
);

/** Where head `head` of all batch rows begins in [B,s,heads,d], and the bytes from row to row. */
function emitHead(
  f: FunctionBuilder,
  { src, heads, s, d }: Readonly<Record<"src" | "heads" | "s" | "d", Local<"i32">>>,
  head: I32,
): { base: Local<"i32">; row: Local<"i32">; head: Local<"i32"> } {
  const index = f.i32(head);
  const row = f.i32(i32.mul(i32.mul(heads, d), 4));
  const base = f.i32(at(src, i32.mul(i32.divU(index, heads), s), row));
  f.set(base, at(base, i32.remU(index, heads), i32.mul(d, 4)));
  return { base, row, head: index };
}

/** Bits of what is seen: a word per key, all of them without a mask. */
export const visibleBits = defineKernel({ mask: "i32", bits: "i32", n: "i32" }, (f, { mask, bits, n }) => {
  const i = f.i32();
  f.for(i, 0, n, 1, () => {
    const seen = f.i32(1);
    f.if(mask, () => f.set(seen, i32.load8U(i32.add(mask, i))));
    f.do(i32.store(at(bits, i, 4), i32.sub(0, i32.ne(seen, 0))));
  });
});

/** What backward passes need of each query, heads first: max, logSum and dy · y, [3][B·H][T]. A task is one head. */
export const queryShifts = defineKernel(
  { dy: "i32", y: "i32", lse: "i32", shifts: "i32", heads: "i32", t: "i32", d: "i32", all: "i32" },
  (f, { dy, y, lse, shifts, heads, t, d, all }, { task }) => {
    const { base, row } = emitHead(f, { src: dy, heads, s: t, d }, task);
    const [dyAt, yAt, query, out, pair] = Array.from({ length: 5 }, () => f.i32());
    const sums = accumulators(f, 2);
    const plane = f.i32(i32.mul(i32.mul(all, t), 4));
    f.set(out, at(shifts, i32.mul(task, t), 4));
    f.for(query, 0, t, 1, () => {
      f.set(dyAt, at(base, query, row));
      f.set(yAt, i32.add(y, i32.sub(dyAt, dy)));
      // Row (b, t, h) of lse has two words.
      f.set(pair, i32.divU(i32.sub(dyAt, dy), i32.mul(d, 4)));
      f.set(pair, at(lse, pair, 8));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        d,
        [dyAt, yAt],
        ({ load, round }) => f.set(sums[round], f.madd(load(dyAt), load(yAt), sums[round])),
        2,
      );
      f.do(
        f32.store(out, f32.load(pair)),
        f32.store(i32.add(out, plane), f32.load(pair, 4)),
        f32.store(i32.add(out, i32.mul(plane, 2)), sumLanes(f, sums)),
      );
      f.set(out, i32.add(out, 4));
    });
  },
);

/** Addresses within a thread's scratch, as the host lays them out (attention-ops.ts). */
const PLACES = words(
  ...(["leftAt", "otherLeftAt", "scoresAt", "otherScoresAt", "weightsAt"] as const),
  ...(["sumsAt", "otherSumsAt", "statsAt"] as const),
);

/** Sizes; `blockRows` is a multiple of a panel's rows, `batches` · heads the number of heads. */
const EXTENTS = {
  ...words("batches", "t", "s", "h", "g", "d", "offset", "blocks", "blockRows"),
  scale: "f32",
} as const;

/** A block's products: panels of rows that stay, against panels that stream. */
class Block {
  readonly f: FunctionBuilder;
  readonly frame: Frame;
  readonly rows: Local<"i32">;
  readonly panels: Local<"i32">;
  readonly d: Local<"i32">;
  readonly columnPanels: Local<"i32">;
  readonly sumRow: Local<"i32">;
  readonly #panel: Local<"i32">;
  readonly #column: Local<"i32">;

  constructor(f: FunctionBuilder, frame: Frame, rows: Local<"i32">, d: Local<"i32">) {
    this.f = f;
    this.frame = frame;
    this.rows = rows;
    this.d = d;
    this.panels = f.i32(panelsOf(rows, frame.library.panelRows));
    this.columnPanels = f.i32(panelsOf(d, PANEL_COLS));
    this.sumRow = f.i32(i32.mul(this.columnPanels, PANEL_COL_BYTES));
    this.#panel = f.i32();
    this.#column = f.i32();
  }

  place(offset: Local<"i32">): Local<"i32"> {
    return this.f.i32(i32.add(this.frame.scratch, offset));
  }

  /** Rows that lie `row` bytes apart as left panels of k steps. */
  pack(src: I32, row: I32, k: I32, left: Local<"i32">): void {
    const { panelRows, packRows } = this.frame.library;
    const { f } = this;
    const panel = this.#panel;
    f.for(panel, 0, this.panels, 1, () => {
      const first = f.i32(i32.mul(panel, panelRows));
      const rows = i32.min(f.i32(i32.sub(this.rows, first)), panelRows);
      f.call(packRows.left, at(src, first, row), row, rows, k, at(left, first, i32.mul(k, 4)));
    });
  }

  /** scores[rows, count] = left · right, right panels of d steps from `right` on. */
  score(left: Local<"i32">, right: Local<"i32">, count: Local<"i32">, scores: Local<"i32">): void {
    const { f, d } = this;
    this.#tiles(panelsOf(count, PANEL_COLS), (first, column) => {
      const a = at(left, first, i32.mul(d, 4));
      const b = at(right, column, i32.mul(d, PANEL_COL_BYTES));
      const c = i32.add(at(scores, first, SCORE_ROW), i32.mul(column, PANEL_COL_BYTES));
      f.call(this.frame.library.tile, a, b, d, c, SCORE_ROW, 0, 0);
    });
  }

  /** sums[rows, d] += weights · right over k steps, right panels `panelBytes` apart. */
  gather(
    weights: Local<"i32">,
    right: Local<"i32">,
    panelBytes: I32,
    k: Local<"i32">,
    sums: Local<"i32">,
  ): void {
    const { f, sumRow } = this;
    this.#tiles(this.columnPanels, (first, column) => {
      const a = at(weights, first, i32.mul(k, 4));
      const c = f.i32(i32.add(at(sums, first, sumRow), i32.mul(column, PANEL_COL_BYTES)));
      f.call(this.frame.library.tile, a, at(right, column, panelBytes), k, c, sumRow, c, sumRow);
    });
  }

  clear(sums: Local<"i32">): void {
    const rows = i32.mul(this.panels, this.frame.library.panelRows);
    this.f.zeroBytes(sums, i32.mul(rows, this.sumRow));
  }

  /** Rows of sums, scaled, to rows that lie `row` bytes apart; the factor may differ by row. */
  write(sums: Local<"i32">, dst: I32, row: I32, factorOf: (row: Local<"i32">) => Expr<"f32">): void {
    const { f } = this;
    const [index, from, to, factor] = [f.i32(), f.i32(), f.i32(), f.v128()];
    f.for(index, 0, this.rows, 1, () => {
      f.set(factor, f32x4.splat(factorOf(index)));
      f.set(from, at(sums, index, this.sumRow));
      f.set(to, at(dst, index, row));
      forVectors(f, this.d, [from, to], ({ load, store }) => store(to, f32x4.mul(load(from), factor)));
    });
  }

  #tiles(columns: I32, body: (firstRow: Local<"i32">, column: Local<"i32">) => void): void {
    const { f } = this;
    const [panel, column] = [this.#panel, this.#column];
    const first = f.i32();
    f.for(column, 0, columns, 1, () => {
      f.for(panel, 0, this.panels, 1, () => {
        f.set(first, i32.mul(panel, this.frame.library.panelRows));
        body(first, column);
      });
    });
  }
}

/** Which block of which head a task is: late blocks see the most, and go first. */
function emitQueryTask(
  f: FunctionBuilder,
  { task }: Frame,
  p: Readonly<Record<"batches" | "h" | "g" | "blocks" | "blockRows" | "t", Local<"i32">>>,
) {
  const heads = f.i32(i32.mul(p.batches, p.h));
  const head = f.i32(i32.remU(task, heads));
  const block = i32.sub(i32.sub(p.blocks, 1), i32.divU(task, heads));
  const first = f.i32(i32.mul(block, p.blockRows));
  const rows = f.i32(i32.min(f.i32(i32.sub(p.t, first)), p.blockRows));
  const batch = f.i32(i32.divU(head, p.h));
  const inBatch = i32.remU(head, p.h);
  // Heads of queries that share a key head are neighbours.
  const keyHead = f.i32(i32.add(i32.mul(batch, p.g), i32.divU(inBatch, i32.divU(p.h, p.g))));
  return { head, first, rows, batch, keyHead };
}

export const attention = defineKernel(
  {
    ...words("q", "keys", "values", "visible", "y", "lse"),
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
    const [start, count] = [f.i32(), f.i32()];
    const exp = expOf(f);
    f.for(start, 0, end, STREAM, () => {
      f.set(count, i32.min(f.i32(i32.sub(end, start)), STREAM));
      block.score(left, f.i32(at(headKeys, start, i32.mul(p.d, 4))), count, scores);
      const visible = f.i32(at(p.visible, i32.add(i32.mul(batch, p.s), start), 4));
      f.for(row, 0, rows, 1, () => {
        const seen = i32.sub(i32.add(i32.add(first, row), i32.add(p.offset, 1)), start);
        const io = { scores: at(scores, row, SCORE_ROW), visible, sums: at(sums, row, block.sumRow) };
        emitSoftmaxRow(f, exp, { ...io, stats: at(stats, row, 8) }, { count, seen, scale: p.scale, block });
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
  extent: { count: Local<"i32">; seen: I32; scale: Local<"f32">; block: Block },
): void {
  const { count, scale, block } = extent;
  const [scores, visible, sums, stats] = [io.scores, io.visible, io.sums, io.stats].map((address) =>
    f.i32(address),
  );
  const limit = f.v128(i32x4.splat(i32.min(f.i32(extent.seen), count)));
  const position = f.v128(v128.constant([0, 1, 2, 3]));
  const four = f.v128(i32x4.splat(4));
  const hidden = f.v128(f32x4.splat(HIDDEN));
  const factor = f.v128(f32x4.splat(scale));
  const best = f.v128(hidden);
  const [from, end] = [f.i32(scores), f.i32(at(scores, i32.shrU(i32.add(count, 3), 2), 16))];
  f.while(i32.ltU(from, end), () => {
    const seen = v128.and(i32x4.gtS(limit, position), v128.load(visible));
    const score = f.v128(v128.bitselect(f32x4.mul(v128.load(from), factor), hidden, seen));
    f.do(v128.store(from, score));
    f.set(best, f32x4.pmax(best, score));
    f.set(position, i32x4.add(position, four));
    f.set(from, i32.add(from, 16));
    f.set(visible, i32.add(visible, 16));
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

/** dq of a block of queries; `valueRows` are panels of rows, `keyColumns` of columns. */
export const attentionBackwardQ = defineKernel(
  {
    ...words("dy", "q", "keyRows", "keyColumns", "valueRows", "visible"),
    ...words("shifts", "dq"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const { head, first, rows, batch, keyHead } = emitQueryTask(f, frame, p);
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
    const plane = f.i32(i32.mul(i32.mul(i32.mul(p.batches, p.h), p.t), 4));
    const shift = f.i32(at(p.shifts, i32.add(i32.mul(head, p.t), first), 4));
    const end = f.i32(i32.min(p.s, f.i32(i32.add(i32.add(first, rows), p.offset))));
    const [start, count, row, at1, at2, bits] = Array.from({ length: 6 }, () => f.i32());
    const exp = expOf(f);
    const [max, logSum, delta, limit, position] = Array.from({ length: 5 }, () => f.v128());
    const [scale, four] = [f.v128(f32x4.splat(p.scale)), f.v128(i32x4.splat(4))];
    f.for(start, 0, end, STREAM, () => {
      f.set(count, i32.min(f.i32(i32.sub(end, start)), STREAM));
      block.score(left, f.i32(at(keys, start, i32.mul(p.d, 4))), count, scores);
      block.score(dyLeft, f.i32(at(values, start, i32.mul(p.d, 4))), count, slopes);
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
        const last = f.i32(i32.add(at1, i32.mul(count, 4)));
        f.while(i32.ltU(at1, last), () => {
          const visible = v128.and(i32x4.gtS(limit, position), v128.load(bits));
          const score = f32x4.mul(v128.load(at1), scale);
          const weight = exp(f32x4.sub(f32x4.sub(score, max), logSum));
          const slope = f32x4.mul(weight, f32x4.sub(v128.load(at2), delta));
          f.do(v128.store(at1, v128.and(slope, visible)));
          f.set(position, i32x4.add(position, four));
          for (const pointer of [at1, at2, bits]) f.set(pointer, i32.add(pointer, 16));
        });
      });
      block.pack(scores, SCORE_ROW, count, weights);
      block.gather(weights, f.i32(at(columns, start, PANEL_COL_BYTES)), panelBytes, count, sums);
    });
    block.write(sums, i32.add(p.dq, offset), query.row, () => p.scale);
  },
);

/** dk and dv of a block of keys, over all queries and query heads that see them. */
export const attentionBackwardKV = defineKernel(
  {
    ...words("k", "v", "queryRows", "queryColumns", "dyRows", "dyColumns"),
    ...words("visible", "shifts", "dk", "dv"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const keyHeads = f.i32(i32.mul(p.batches, p.g));
    const keyHead = f.i32(i32.remU(frame.task, keyHeads));
    const first = f.i32(i32.mul(i32.divU(frame.task, keyHeads), p.blockRows)); // early keys are seen the most
    const rows = f.i32(i32.min(f.i32(i32.sub(p.s, first)), p.blockRows));
    const block = new Block(f, frame, rows, p.d);
    const places = [
      p.leftAt,
      p.otherLeftAt,
      p.scoresAt,
      p.otherScoresAt,
      p.weightsAt,
      p.sumsAt,
      p.otherSumsAt,
    ];
    const [left, valueLeft, scores, slopes, weights, dkSums, dvSums] = places.map((offset) =>
      block.place(offset),
    );
    const key = emitHead(f, { src: p.k, heads: p.g, s: p.s, d: p.d }, keyHead);
    const offset = f.i32(i32.sub(at(key.base, first, key.row), p.k));
    block.pack(i32.add(p.k, offset), key.row, p.d, left);
    block.pack(i32.add(p.v, offset), key.row, p.d, valueLeft);
    block.clear(dkSums);
    block.clear(dvSums);
    const rowPanels = f.i32(i32.mul(i32.mul(panelsOf(p.t, PANEL_COLS), PANEL_COL_BYTES), p.d));
    const panelBytes = f.i32(i32.mul(p.t, PANEL_COL_BYTES));
    const plane = f.i32(i32.mul(i32.mul(i32.mul(p.batches, p.h), p.t), 4));
    const group = f.i32(i32.divU(p.h, p.g));
    const batch = f.i32(i32.divU(keyHead, p.g));
    const bits = f.i32(at(p.visible, i32.add(i32.mul(batch, p.s), first), 4));
    // The first query that sees the first key, and panels begin at multiples of 8.
    const begin = f.i32(i32.sub(first, p.offset));
    f.set(begin, i32.select(i32.gtS(begin, 0), i32.and(begin, -PANEL_COLS), 0));
    const head = f.i32();
    const headEnd = f.i32(i32.mul(i32.add(keyHead, 1), group));
    const [start, count, row, at1, at2, shift] = Array.from({ length: 6 }, () => f.i32());
    const exp = expOf(f);
    const [limit, position, mask] = [f.v128(), f.v128(), f.v128()];
    const [scale, four] = [f.v128(f32x4.splat(p.scale)), f.v128(i32x4.splat(4))];
    f.for(head, i32.mul(keyHead, group), headEnd, 1, () => {
      const headRows = i32.mul(head, rowPanels);
      const headColumns = i32.mul(i32.mul(head, block.columnPanels), panelBytes);
      f.for(start, begin, p.t, STREAM, () => {
        f.set(count, i32.min(f.i32(i32.sub(p.t, start)), STREAM));
        const panelAt = f.i32(i32.add(headRows, i32.mul(i32.mul(start, p.d), 4)));
        block.score(left, f.i32(i32.add(p.queryRows, panelAt)), count, scores);
        block.score(valueLeft, f.i32(i32.add(p.dyRows, panelAt)), count, slopes);
        f.for(row, 0, rows, 1, () => {
          const unseen = i32.sub(i32.sub(i32.add(first, row), i32.add(p.offset, 1)), start);
          f.set(limit, i32x4.splat(unseen)); // the last query that does not see the key
          f.set(mask, v128.load32Splat(at(bits, row, 4)));
          f.set(position, v128.constant([0, 1, 2, 3]));
          f.set(at1, at(scores, row, SCORE_ROW));
          f.set(at2, at(slopes, row, SCORE_ROW));
          f.set(shift, at(p.shifts, i32.add(i32.mul(head, p.t), start), 4));
          const last = f.i32(i32.add(at1, i32.mul(count, 4)));
          f.while(i32.ltU(at1, last), () => {
            const visible = f.v128(v128.and(i32x4.gtS(position, limit), mask));
            const score = f32x4.mul(v128.load(at1), scale);
            const below = f32x4.sub(f32x4.sub(score, v128.load(shift)), v128.load(i32.add(shift, plane)));
            const weight = f.v128(v128.and(exp(below), visible));
            const delta = v128.load(i32.add(shift, i32.mul(plane, 2)));
            const slope = f32x4.mul(weight, f32x4.sub(v128.load(at2), delta));
            f.do(v128.store(at2, slope), v128.store(at1, weight));
            f.set(position, i32x4.add(position, four));
            for (const pointer of [at1, at2, shift]) f.set(pointer, i32.add(pointer, 16));
          });
        });
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
