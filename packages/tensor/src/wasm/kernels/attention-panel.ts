/** What the kernels of attention share: where rows of heads lie, and the products of a panel of them with what streams past. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, type I32, i32, type V128, v128 } from "../assembler/instructions.ts";
import type { Visibility, Window } from "./attention-visibility.ts";
import { type Frame, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS, SHORT_ROWS, transpose4 } from "./library.ts";
import { STREAM } from "./tasks.ts";
import { forVectors } from "./vectors.ts";

export type Words<K extends string> = Readonly<Record<K, Local<"i32">>>;
/** Values of the eight columns of a panel. */
export type Eight<T> = readonly [T, T];

export const COLUMN_HALVES = [0, 1] as const;
export const eight = <T>(make: (half: 0 | 1) => T): Eight<T> => [make(0), make(1)];

export const at = (base: I32, index: I32, bytes: I32): Expr<"i32"> => i32.add(base, i32.mul(index, bytes));
export const panelsOf = (count: I32, width: number): Expr<"i32"> =>
  i32.divU(i32.add(count, width - 1), width);

/**
 * Rows from one panel of columns to the next: as many as there are, and some that keep the panels apart. Packing writes all of them
 * at once, and at multiples of 4 KiB they would share lines of a cache.
 */
export const PITCH = 15;
export const pitchOf = (rows: I32): Expr<"i32"> => i32.or(rows, PITCH);

/** Addresses within a thread's scratch, as the host lays them out (attention-ops.ts): once, and for each panel of a task. */
export const PLACES = words(
  ...(["scoresAt", "otherScoresAt", "rowAt", "oneAt"] as const),
  ...(["panelAt", "otherPanelAt", "sumsAt", "otherSumsAt", "wordsAt"] as const),
);

/** Sizes; `group` query heads share a key head, whose rows are cut into blocks of panels, `panelBytes` of scratch each. */
export const EXTENTS = {
  ...words("t", "s", "g", "group", "d", "offset"),
  ...words("blocks", "blockPanels", "panelBytes"),
  scale: "f32",
} as const;

/** Where a panel's words are, after its columns' positions or masks and its columns' segments: 32 bytes for eight columns. */
export const WORDS = { columns: 0, largest: 64, totals: 96, range: 128, count: 36 } as const;

/**
 * The rows of one key head in [B,s,g·group,d], the positions' group of heads one after the other: row i is that of position
 * i / group and of head i mod group of those that share the key head.
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
 * Eight rows that stay, as the right panel of products: their scores stand in columns, a row for each key or query that streams past.
 * A task has several where those would not stay in a cache, and takes each window of them past all of its panels.
 */
export class Panel {
  readonly f: FunctionBuilder;
  readonly frame: Frame;
  /** The panel's first row, how many there are, and where its part of the scratch begins: set by `each`. */
  readonly first: Local<"i32">;
  readonly rows: Local<"i32">;
  readonly #scratch: Local<"i32">;
  readonly #index: Local<"i32">;
  readonly #block: Words<"first" | "panels" | "bytes">;
  /** Rows in all, and their elements. */
  readonly n: Local<"i32">;
  readonly d: Local<"i32">;
  /** Panels of the left operand in d. */
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
    [this.first, this.rows, this.#scratch, this.#index] = [f.i32(), f.i32(), f.i32(), f.i32()];
    this.#deep = f.i32(panelsOf(d, frame.library.panelRows));
  }

  /** Runs the body for each panel of the task. */
  each(body: () => void): void {
    const { f, first } = this;
    const { panels, bytes, first: firstPanel } = this.#block;
    f.for(this.#index, 0, panels, 1, () => {
      f.set(first, i32.mul(i32.add(firstPanel, this.#index), PANEL_COLS));
      f.set(this.rows, i32.min(f.i32(i32.sub(this.n, first)), PANEL_COLS));
      f.set(this.#scratch, at(this.frame.scratch, this.#index, bytes));
      body();
    });
  }

  /** Bytes of a row of left panels. */
  get stepBytes(): number {
    return 4 * this.frame.library.panelRows;
  }

  /** An address in the panel's part of the scratch. */
  place(offset: Local<"i32">): Local<"i32"> {
    return this.f.i32(i32.add(this.#scratch, offset));
  }

  /** One that all panels share. */
  shared(offset: Local<"i32">): Local<"i32"> {
    return this.f.i32(i32.add(this.frame.scratch, offset));
  }

  /** The panel's rows at `to`; columns that do not exist repeat the last one. */
  pack({ base, position, group }: HeadRows, to: Local<"i32">): void {
    const { f, first, n, d } = this;
    f.call(this.frame.library.packHeads.right, base, position, group, first, n, d, to);
  }

  /** Bytes of what streams past, rows as left panels, for one head of n rows. */
  rowsBytes(n: I32): Local<"i32"> {
    const { panelRows } = this.frame.library;
    return this.f.i32(i32.mul(i32.mul(panelsOf(n, panelRows), 4 * panelRows), this.d));
  }

  /** The same of columns as left panels: bytes of one panel, and of all. */
  columnsBytes(n: I32): { panel: Local<"i32">; head: Local<"i32"> } {
    const panel = this.f.i32(i32.mul(pitchOf(n), this.stepBytes));
    return { panel, head: this.f.i32(i32.mul(panel, this.#deep)) };
  }

  /** scores[count][8]: left panels of rows from `left` on, times the panel. */
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

  /** sums[d][8] += left panels of columns from `left` on, `panelBytes` apart, times weights[count][8]. */
  gather(
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

  /** Runs the body for windows of what each panel sees, the same of all panels one after the other. */
  stream(visibility: Visibility, words: Local<"i32">, body: (window: Window) => void): void {
    const { f } = this;
    const [from, to] = [f.i32(0x7fff_ffff), f.i32()];
    this.each(() => {
      visibility.prepare(this.place(words));
      f.set(from, i32.min(visibility.begin, from));
      f.set(to, i32.select(i32.gtS(visibility.end, to), visibility.end, to));
    });
    const [window, start, count] = [f.i32(), f.i32(), f.i32()];
    f.for(window, from, to, STREAM, () =>
      this.each(() => {
        visibility.load(this.place(words));
        f.set(start, i32.select(i32.gtS(visibility.begin, window), visibility.begin, window));
        f.set(count, i32.sub(i32.min(visibility.end, f.i32(i32.add(window, STREAM))), start));
        f.if(i32.gtS(count, 0), () => body({ start, count }));
      }),
    );
  }

  clear(sums: Local<"i32">): void {
    this.f.zeroBytes(sums, i32.mul(this.#deep, PANEL_COL_BYTES * this.frame.library.panelRows));
  }

  /** Columns of sums, each times its factor, to the rows of the panel; what belongs to none goes to `nowhere`, a row of scratch. */
  write(sums: Local<"i32">, factors: Eight<V128>, to: HeadRows, nowhere: Local<"i32">): void {
    const { f } = this;
    const index = f.i32();
    const rows = Array.from({ length: PANEL_COLS }, (_, i) => {
      f.set(index, i32.add(this.first, i));
      return f.i32(i32.select(i32.ltS(i, this.rows), to.at(index), nowhere));
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

  /** Runs the body for each row that exists: its place in the panel, and among all. */
  forRows(body: (row: Local<"i32">, index: Local<"i32">) => void): void {
    const { f } = this;
    const [row, index] = [f.i32(), f.i32()];
    f.for(row, 0, this.rows, 1, () => {
      f.set(index, i32.add(this.first, row));
      body(row, index);
    });
  }
}

/** Which rows of which key head a task is: those that see or are seen the most go first. */
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

/** `value` times what stands in k x width floats at an address. */
export function emitScale(f: FunctionBuilder, address: I32, count: I32, value: Local<"f32">): void {
  f.if(i32.eqz(f32.eq(value, 1)), () => {
    const [pointer, factor] = [f.i32(address), f.v128(f32x4.splat(value))];
    forVectors(f, count, [pointer], ({ load, store }) => store(pointer, f32x4.mul(load(pointer), factor)));
  });
}
