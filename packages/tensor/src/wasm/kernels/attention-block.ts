/** What the kernels of attention share: where heads lie, and a block's products over packed panels. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32x4, type I32, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { type Frame, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { STREAM } from "./tasks.ts";
import { forVectors } from "./vectors.ts";

/** Bytes from row to row of a block of scores. */
export const SCORE_ROW = 4 * STREAM;

export const at = (base: I32, index: I32, bytes: I32): Expr<"i32"> => i32.add(base, i32.mul(index, bytes));
export const panelsOf = (count: I32, width: number): Expr<"i32"> =>
  i32.divU(i32.add(count, width - 1), width);

/** Where head `head` of all batch rows begins in [B,s,heads,d], and the bytes from row to row. */
export function emitHead(
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

/** Addresses within a thread's scratch, as the host lays them out (attention-ops.ts). */
export const PLACES = words(
  ...(["leftAt", "otherLeftAt", "scoresAt", "otherScoresAt", "weightsAt"] as const),
  ...(["sumsAt", "otherSumsAt", "statsAt"] as const),
);

/** Sizes; `blockRows` is a multiple of a panel's rows, `batches` · heads the number of heads. */
export const EXTENTS = {
  ...words("batches", "t", "s", "h", "g", "d", "offset", "blocks", "blockRows"),
  scale: "f32",
} as const;

/** A block's products: panels of rows that stay, against panels that stream. */
export class Block {
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
export function emitQueryTask(
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

/** Segments of a batch row's key positions. */
export interface Segments {
  /** The segment of a query or key at this position, in all lanes. */
  of(position: I32): V128;
  /** Where those of keys from a position on lie; moves on by `step` for four keys. */
  at(position: I32): Expr<"i32">;
  readonly step: Expr<"i32">;
  /** 0 where there are none: then four zeros at address 0 stand for all, and nothing moves. */
  readonly given: Expr<"i32">;
}

export function emitSegments(
  f: FunctionBuilder,
  { segments, s }: Readonly<Record<"segments" | "s", Local<"i32">>>,
  batch: Local<"i32">,
): Segments {
  const base = f.i32(i32.select(segments, at(segments, i32.mul(batch, s), 4), 0));
  const word = f.i32(i32.select(segments, 4, 0));
  return {
    of: (position) => v128.load32Splat(at(base, position, word)),
    at: (position) => at(base, position, word),
    step: i32.shl(word, 2),
    given: segments,
  };
}

/**
 * Moves `from` on by panels of positions, towards `to`, while none of them has the segment of one of `rows` positions from
 * `first` on: what a block of attention does not see. A negative step goes down and looks below `from`.
 */
export function emitSkip(
  f: FunctionBuilder,
  segments: Segments,
  { first, rows, shift }: { first: I32; rows: Local<"i32">; shift: I32 },
  { from, to, down = false }: { from: Local<"i32">; to: Local<"i32">; down?: boolean },
): void {
  const [row, address] = [f.i32(), f.i32()];
  const [any, own] = [f.v128(), f.v128()];
  f.if(segments.given, () =>
    f.forever((stop) => {
      stop(i32.leS(down ? from : to, down ? to : from));
      f.set(any, v128.constant([0, 0, 0, 0]));
      const looked = down ? i32.sub(from, PANEL_COLS) : from;
      f.set(address, segments.at(i32.add(looked, shift)));
      f.for(row, 0, rows, 1, () => {
        f.set(own, segments.of(i32.add(first, row)));
        for (const offset of [0, 16]) {
          f.set(any, v128.or(any, i32x4.eq(own, v128.load(address, offset))));
        }
      });
      stop(v128.anyTrue(any));
      f.set(from, i32.add(from, down ? -PANEL_COLS : PANEL_COLS));
    }),
  );
}
