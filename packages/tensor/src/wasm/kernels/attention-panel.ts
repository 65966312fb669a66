/**
 * What the kernels of attention share: addresses of the rows of a head, and the matmuls of a panel (eight queries or keys that
 * stay in place) with the rows that stream past it.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, type I32, i32, type V128, v128 } from "../assembler/instructions.ts";
import type { Visibility, Window } from "./attention-visibility.ts";
import { type Frame, type Words, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS, SHORT_ROWS, transpose4 } from "./library.ts";
import { STREAM } from "./tasks.ts";
import { at, forVectors } from "./vectors.ts";

/** A value for each of the eight columns of a panel: two vectors, or what stands for them. */
export type Eight<T> = readonly [T, T];

/** Columns 0 .. 3 and 4 .. 7 of a panel. */
export const COLUMN_HALVES = [0, 1] as const;
export const eight = <T>(make: (half: 0 | 1) => T): Eight<T> => [make(0), make(1)];

export const panelsOf = (count: I32, width: number): Expr<"i32"> =>
  i32.divU(i32.add(count, width - 1), width);

/**
 * Rows between the starts of two panels of columns: the number of rows, rounded up to 16 i + 15. Packing writes one row of all
 * panels at a time, and panels at multiples of 4 KiB would compete for the same lines of the cache.
 */
export const PITCH = 15;
export const pitchOf = (rows: I32): Expr<"i32"> => i32.or(rows, PITCH);

/**
 * Offsets within a thread's scratch, laid out by `placesOf` in attention-ops.ts: the first line once for a task, the second line
 * from the start of each panel's part.
 */
export const PLACES = words(
  ...(["scoresAt", "otherScoresAt", "rowAt", "oneAt"] as const),
  ...(["panelAt", "otherPanelAt", "sumsAt", "otherSumsAt", "wordsAt"] as const),
);

/**
 * T, S, key heads, query heads that share one, D and the position of the first query; then the tasks of a key head, the panels
 * of a task, and the bytes of scratch of a panel.
 */
export const EXTENTS = {
  ...words("t", "s", "g", "group", "d", "offset"),
  ...words("blocks", "blockPanels", "panelBytes"),
  scale: "f32",
} as const;

/**
 * Byte offsets at a panel's `wordsAt`: two words for each column (attention-visibility.ts), the largest score and the sum of
 * weights of each column, and the range of rows; and how many words these are.
 */
export const WORDS = { columns: 0, largest: 64, totals: 96, range: 128, count: 36 } as const;

/**
 * Addresses of the rows of one key head in [B,s,g·group,d]. With grouped queries, row i is position i / group of head i mod group
 * among the heads that share the key head.
 */
export class HeadRows {
  readonly base: Local<"i32">;
  readonly position: Local<"i32">;
  readonly group: Local<"i32">;
  readonly #bytes: Local<"i32">;

  constructor(
    f: FunctionBuilder,
    { src, s, g, group, d }: Words<"src" | "s" | "g" | "d"> & { group: I32 },
    head: Local<"i32">,
  ) {
    this.group = f.i32(group);
    this.#bytes = f.i32(i32.mul(d, 4));
    this.position = f.i32(i32.mul(i32.mul(g, this.group), this.#bytes));
    this.base = f.i32(at(src, i32.mul(i32.divU(head, g), s), this.position));
    f.set(this.base, at(this.base, i32.mul(i32.remU(head, g), this.group), this.#bytes));
  }

  at(row: Local<"i32">): Expr<"i32"> {
    const inGroup = i32.mul(i32.remU(row, this.group), this.#bytes);
    return i32.add(at(this.base, i32.divU(row, this.group), this.position), inGroup);
  }
}

/**
 * Eight queries (or keys) as the right operand of matmuls whose left operand is the rows that stream past: scores have a column for
 * each of the eight, and a row for each streaming row. A task has several panels where the streaming operands exceed a cache, and
 * runs each window of them past all its panels before the next.
 */
export class Panel {
  readonly f: FunctionBuilder;
  readonly frame: Frame;
  /** The panel's first row and its number of rows, 8 but at the end; `each` sets these, and the address of the panel's scratch. */
  readonly first: Local<"i32">;
  readonly rows: Local<"i32">;
  readonly #scratch: Local<"i32">;
  readonly #block: Words<"first" | "panels" | "bytes">;
  /** Rows of the head, and elements of a row. */
  readonly n: Local<"i32">;
  readonly d: Local<"i32">;
  /** Left panels that d columns take. */
  readonly #deep: Local<"i32">;

  constructor(
    f: FunctionBuilder,
    frame: Frame,
    block: Words<"first" | "panels" | "bytes">,
    { n, d }: Words<"n" | "d">,
  ) {
    this.f = f;
    this.frame = frame;
    this.#block = block;
    [this.n, this.d] = [n, d];
    [this.first, this.rows, this.#scratch] = [f.i32(), f.i32(), f.i32()];
    this.#deep = f.i32(panelsOf(d, frame.library.panelRows));
  }

  /** Runs the body for each panel of the task. */
  each(body: () => void): void {
    const { f, first } = this;
    const { panels, bytes, first: firstPanel } = this.#block;
    f.for(0, panels, 1, (index) => {
      f.set(first, i32.mul(i32.add(firstPanel, index), PANEL_COLS));
      f.set(this.rows, i32.min(f.i32(i32.sub(this.n, first)), PANEL_COLS));
      f.set(this.#scratch, at(this.frame.scratch, index, bytes));
      body();
    });
  }

  /** Bytes of one step of a left panel. */
  get stepBytes(): number {
    return 4 * this.frame.library.panelRows;
  }

  /** An address in the panel's part of the scratch. */
  place(offset: Local<"i32">): Local<"i32"> {
    return this.f.i32(i32.add(this.#scratch, offset));
  }

  /** An address in the scratch that all panels of the task share. */
  shared(offset: Local<"i32">): Local<"i32"> {
    return this.f.i32(i32.add(this.frame.scratch, offset));
  }

  /** Packs the panel's rows to `to`; columns past the last row repeat it. */
  pack({ base, position, group }: HeadRows, to: Local<"i32">): void {
    const { f, first, n, d } = this;
    f.call(this.frame.library.packHeads.right, base, position, group, first, n, d, to);
  }

  /** Bytes of one head of n streaming rows, packed by rows. */
  rowsBytes(n: I32): Local<"i32"> {
    const { panelRows } = this.frame.library;
    return this.f.i32(i32.mul(i32.mul(panelsOf(n, panelRows), 4 * panelRows), this.d));
  }

  /** Bytes of one head of n streaming rows, packed by columns: of one panel, and of all. */
  columnsBytes(n: I32): { panel: Local<"i32">; head: Local<"i32"> } {
    const panel = this.f.i32(i32.mul(pitchOf(n), this.stepBytes));
    return { panel, head: this.f.i32(i32.mul(panel, this.#deep)) };
  }

  /** scores[count][8] = `count` streaming rows, packed by rows at `left`, times the panel at `right`. */
  score(left: Local<"i32">, right: Local<"i32">, count: Local<"i32">, scores: Local<"i32">): void {
    const { f, d } = this;
    const { tile, panelRows } = this.frame.library;
    const [a, c] = [f.i32(left), f.i32(scores)];
    const end = f.i32(at(scores, count, PANEL_COL_BYTES));
    f.while(i32.ltU(c, end), () => {
      f.call(tile, a, right, d, c, PANEL_COL_BYTES, 0, 0);
      f.set(a, i32.add(a, i32.mul(d, 4 * panelRows)));
      f.set(c, i32.add(c, PANEL_COL_BYTES * panelRows));
    });
  }

  /** sums[d][8] += the transpose of `count` streaming rows, packed by columns at `left`, times weights[count][8]. */
  accumulate(
    left: Local<"i32">,
    panelBytes: Local<"i32">,
    weights: Local<"i32">,
    count: Local<"i32">,
    sums: Local<"i32">,
  ): void {
    const { f } = this;
    const { tile, shortTile, panelRows } = this.frame.library;
    const [a, c] = [f.i32(left), f.i32(sums)];
    const end = f.i32(at(sums, this.d, PANEL_COL_BYTES));
    f.while(i32.ltU(c, end), () => {
      const args = [a, weights, count, c, PANEL_COL_BYTES, c, PANEL_COL_BYTES];
      f.if(
        i32.leS(i32.sub(end, c), SHORT_ROWS * PANEL_COL_BYTES),
        () => f.call(shortTile, ...args),
        () => f.call(tile, ...args),
      );
      f.set(a, i32.add(a, panelBytes));
      f.set(c, i32.add(c, PANEL_COL_BYTES * panelRows));
    });
  }

  /**
   * Runs the body for each window of STREAM rows and, within it, for each panel to which any of them are visible:
   *
   *     for window: for panel: body(the visible rows of the window)
   */
  stream(visibility: Visibility, words: Local<"i32">, body: (window: Window) => void): void {
    const { f } = this;
    const [from, to] = [f.i32(0x7fff_ffff), f.i32()];
    this.each(() => {
      visibility.prepare(this.place(words));
      f.set(from, i32.min(visibility.begin, from));
      f.set(to, i32.select(i32.gtS(visibility.end, to), visibility.end, to));
    });
    f.for(from, to, STREAM, (window) =>
      this.each(() => {
        visibility.load(this.place(words));
        const start = f.i32(i32.select(i32.gtS(visibility.begin, window), visibility.begin, window));
        const count = f.i32(i32.sub(i32.min(visibility.end, f.i32(i32.add(window, STREAM))), start));
        f.if(i32.gtS(count, 0), () => body({ start, count }));
      }),
    );
  }

  clear(sums: Local<"i32">): void {
    this.f.zeroBytes(sums, i32.mul(this.#deep, PANEL_COL_BYTES * this.frame.library.panelRows));
  }

  /**
   * Writes the columns of sums[d][8], each times its factor, as the panel's rows of `to`. Columns past the last row go to
   * `discard`, a row of scratch.
   */
  write(sums: Local<"i32">, factors: Eight<V128>, to: HeadRows, discard: Local<"i32">): void {
    const { f } = this;
    const index = f.i32();
    const rows = Array.from({ length: PANEL_COLS }, (_, i) => {
      f.set(index, i32.add(this.first, i));
      return f.i32(i32.select(i32.ltS(i, this.rows), to.at(index), discard));
    });
    const [from, left] = [f.i32(sums), f.i32(this.d)];
    const load = (step: number, half: 0 | 1) =>
      f32x4.mul(v128.load(from, PANEL_COL_BYTES * step + 16 * half), factors[half]);
    const advance = (steps: number) => {
      for (const row of rows) f.set(row, i32.add(row, 4 * steps));
      f.set(from, i32.add(from, PANEL_COL_BYTES * steps));
      f.set(left, i32.sub(left, steps));
    };
    f.while(i32.geS(left, 4), () => {
      for (const half of COLUMN_HALVES) {
        const four = [0, 1, 2, 3].map((step) => f.v128(load(step, half)));
        for (const [i, row] of transpose4(f, four).entries()) f.do(v128.store(rows[4 * half + i], row));
      }
      advance(4);
    });
    f.while(i32.gtS(left, 0), () => {
      for (const half of COLUMN_HALVES) {
        const four = f.v128(load(0, half));
        for (let i = 0; i < 4; i++) f.do(v128.store32Lane(rows[4 * half + i], four, i));
      }
      advance(1);
    });
  }

  /** Runs the body for each row of the panel, given its index in the panel and in the head. */
  forRows(body: (row: Local<"i32">, index: Local<"i32">) => void): void {
    const { f } = this;
    f.for(0, this.rows, 1, (row) => body(row, f.i32(i32.add(this.first, row))));
  }
}

/** The panels and the key head of a task. Those with the most visible pairs go first, so that threads end at about the same time. */
export function emitPanelTask(
  f: FunctionBuilder,
  frame: Frame,
  p: Words<"t" | "s" | "group" | "d" | "blocks" | "blockPanels" | "panelBytes">,
  kind: "queries" | "keys",
): { panel: Panel; head: Local<"i32"> } {
  const head = f.i32(i32.divU(frame.task, p.blocks));
  const index = i32.remU(frame.task, p.blocks);
  const isQueries = kind === "queries";
  const block = isQueries ? i32.sub(i32.sub(p.blocks, 1), index) : index;
  const n = isQueries ? f.i32(i32.mul(p.t, p.group)) : p.s;
  const first = f.i32(i32.mul(block, p.blockPanels));
  const panels = f.i32(i32.min(f.i32(i32.sub(panelsOf(n, PANEL_COLS), first)), p.blockPanels));
  return { panel: new Panel(f, frame, { first, panels, bytes: p.panelBytes }, { n, d: p.d }), head };
}

/** Multiplies `count` floats at an address by `value`. */
export function emitScale(f: FunctionBuilder, address: I32, count: I32, value: Local<"f32">): void {
  f.if(i32.eqz(f32.eq(value, 1)), () => {
    const factor = f.v128(f32x4.splat(value));
    forVectors(f, count, [address], ([x]) => x.store(f32x4.mul(x.load(), factor)));
  });
}
