/**
 * Which keys are visible to which queries: those up to the query's own position that the key mask does not hide and that
 * belong to the query's segment (a sequence of a packed batch row). `queryVisibility` is for kernels whose panel holds queries
 * while keys stream past it, `keyVisibility` for the reverse.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, type I32, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { COLUMN_HALVES, type Eight, eight, type Panel, WORDS } from "./attention-panel.ts";
import type { Words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { at } from "./vectors.ts";

/** The score of a key that is not visible: finite, and below every other score. */
export const HIDDEN = -3.0e38;

/** `count` of the rows that stream past a panel, from row `start` on. */
export type Window = Words<"start" | "count">;
type Pointers = readonly (readonly [pointer: Local<"i32">, bytes: number])[];

/** The streaming rows that are visible to any column of a panel (or that any of its columns is visible to), and loops over them. */
export interface Visibility {
  /** The first such row, rounded down to a multiple of `panelRows`, and the row after the last. */
  readonly begin: Local<"i32">;
  readonly end: Local<"i32">;
  /** Computes the panel's range and columns, and saves them at `scratch`, from where `load` restores them. */
  prepare(scratch: Local<"i32">): void;
  load(scratch: Local<"i32">): void;
  /**
   * Runs the body for each row of a window, and advances each pointer by its bytes. `visible` has all bits set in the lanes of
   * the columns that are visible to the row. It is null in a loop of its own, without comparisons, over the rows for which every
   * column is: without masks and segments those are all rows but the ones at the causal diagonal.
   */
  each(window: Window, pointers: Pointers, body: (visible: Eight<V128> | null) => void): void;
}

type Extents = Words<"t" | "s" | "g" | "group" | "offset" | "mask" | "segments" | "oneAt">;

/**
 * The key mask and the segments of one batch row. Without segments every position reads the word at address 0, without a mask
 * a byte of scratch that is 1: a stride of 0 takes the place of a branch.
 */
interface Masks {
  segmentAt(position: I32): Expr<"i32">;
  /** All bits if the mask does not hide the key, else 0. */
  unhidden(position: I32): Expr<"i32">;
  readonly isGiven: Local<"i32">;
}

export function emitMasks(
  { f, frame }: Pick<Panel, "f" | "frame">,
  { mask, segments, s, oneAt }: Words<"mask" | "segments" | "s" | "oneAt">,
  batch: I32,
): Masks {
  const first = f.i32(i32.mul(batch, s));
  const one = f.i32(i32.add(frame.scratch, oneAt));
  f.do(i32.store8(one, 1));
  const base = f.i32(i32.select(segments, at(segments, first), 0));
  const word = f.i32(i32.select(segments, 4, 0));
  const maskBase = f.i32(i32.select(mask, i32.add(mask, first), one));
  const byte = f.i32(i32.ne(mask, 0));
  return {
    segmentAt: (position) => at(base, position, word),
    unhidden: (position) => i32.sub(0, i32.ne(i32.load8U(at(maskBase, position, byte)), 0)),
    isGiven: f.i32(i32.or(mask, segments)),
  };
}

/**
 * What a panel needs in every window, in locals and saved in scratch: two words of each column (its position or mask, and its
 * segment), and the range of streaming rows.
 */
class PanelState {
  readonly #f: FunctionBuilder;
  readonly columns: Eight<Eight<Local<"v128">>>;
  readonly begin: Local<"i32">;
  readonly end: Local<"i32">;
  /** Queries in the panel: rows before this one need no comparisons. Keys in the panel: rows from this one on. */
  readonly open: Local<"i32">;

  constructor(f: FunctionBuilder) {
    this.#f = f;
    this.columns = eight(() => eight(() => f.v128()));
    [this.begin, this.end, this.open] = [f.i32(), f.i32(), f.i32()];
  }

  /** Stores and loads the words of the panel's columns; a column past the last row repeats the last. */
  setColumns(
    { first, n }: Panel,
    scratch: Local<"i32">,
    of: (row: Local<"i32">) => Eight<Expr<"i32">>,
  ): void {
    const f = this.#f;
    f.for(0, PANEL_COLS, 1, (column) => {
      const row = f.i32(i32.min(f.i32(i32.add(first, column)), i32.sub(n, 1)));
      const to = f.i32(at(scratch, column));
      for (const [i, word] of of(row).entries()) f.do(i32.store(to, word, PANEL_COL_BYTES * i));
    });
    this.#loadColumns(scratch);
  }

  saveRange(scratch: Local<"i32">): void {
    for (const [i, word] of [this.begin, this.end, this.open].entries()) {
      this.#f.do(i32.store(scratch, word, WORDS.range + 4 * i));
    }
  }

  load(scratch: Local<"i32">): void {
    this.#loadColumns(scratch);
    for (const [i, word] of [this.begin, this.end, this.open].entries()) {
      this.#f.set(word, i32.load(scratch, WORDS.range + 4 * i));
    }
  }

  #loadColumns(scratch: Local<"i32">): void {
    for (const [i, vectors] of this.columns.entries()) {
      for (const half of COLUMN_HALVES) {
        this.#f.set(vectors[half], v128.load(scratch, WORDS.columns + PANEL_COL_BYTES * i + 16 * half));
      }
    }
  }
}

function emitLoop(
  f: FunctionBuilder,
  row: Local<"i32">,
  to: Local<"i32">,
  pointers: Pointers,
  body: () => void,
): void {
  f.while(i32.ltS(row, to), () => {
    body();
    for (const [pointer, bytes] of pointers) f.set(pointer, i32.add(pointer, bytes));
    f.set(row, i32.add(row, 1));
  });
}

const max = (a: Expr<"i32">, b: I32): Expr<"i32"> => i32.select(i32.gtS(a, b), a, b);

/** Moves `from` toward `to` until the segment of position `look` is that of a column of the panel. */
function emitSkip(
  f: FunctionBuilder,
  masks: Masks,
  segments: Eight<Local<"v128">>,
  { from, to, step, look }: { from: Local<"i32">; to: Local<"i32">; step: 1 | -1; look: Expr<"i32"> },
): void {
  const any = f.v128();
  f.forever((stop) => {
    stop(step > 0 ? i32.geS(from, to) : i32.leS(from, to));
    f.set(any, v128.load32Splat(masks.segmentAt(look)));
    stop(v128.anyTrue(v128.or(i32x4.eq(segments[0], any), i32x4.eq(segments[1], any))));
    f.set(from, i32.add(from, step));
  });
}

/** The visibility of a panel of queries, past which keys stream. */
export function queryVisibility(panel: Panel, p: Extents, head: Local<"i32">): Visibility {
  const { f, first, rows } = panel;
  const masks = emitMasks(panel, p, i32.divU(head, p.g));
  const state = new PanelState(f);
  const { begin, end, open } = state;
  const [positions, segments] = state.columns;
  const positionOf = (row: I32) => i32.add(i32.divU(row, p.group), p.offset);
  return {
    begin,
    end,
    load: (scratch) => state.load(scratch),
    prepare(scratch) {
      state.setColumns(panel, scratch, (row) => {
        const position = f.i32(positionOf(row));
        return [position, i32.load(masks.segmentAt(position))];
      });
      f.set(end, i32.add(positionOf(i32.sub(i32.add(first, rows), 1)), 1));
      f.set(end, i32.min(p.s, end));
      f.set(begin, 0);
      f.if(p.segments, () => emitSkip(f, masks, segments, { from: begin, to: end, step: 1, look: begin }));
      f.set(begin, i32.sub(begin, i32.remU(begin, panel.frame.library.panelRows)));
      f.set(open, i32.select(masks.isGiven, 0, i32.add(positionOf(first), 1)));
      state.saveRange(scratch);
    },
    each({ start, count }, pointers, body) {
      const key = f.i32(start);
      const to = f.i32(i32.add(start, count));
      emitLoop(f, key, f.i32(i32.min(to, open)), pointers, () => body(null));
      emitLoop(f, key, to, pointers, () => {
        const segment = f.v128(v128.load32Splat(masks.segmentAt(key)));
        const unhidden = f.v128(i32x4.splat(masks.unhidden(key)));
        const position = f.v128(i32x4.splat(key));
        const visible = (half: 0 | 1) => {
          const among = v128.and(i32x4.eq(segments[half], segment), unhidden);
          return f.v128(v128.andNot(among, i32x4.gtS(position, positions[half])));
        };
        body(eight(visible));
      });
    },
  };
}

/** The visibility of a panel of keys, past which the queries of all heads of their group stream: row i is at position i / group. */
export function keyVisibility(panel: Panel, p: Extents, head: Local<"i32">): Visibility {
  const { f, first, rows } = panel;
  const masks = emitMasks(panel, p, i32.divU(head, p.g));
  const state = new PanelState(f);
  const { begin, end, open } = state;
  const [unhidden, segments] = state.columns;
  /** The first query row to which a key is visible. */
  const firstOf = (key: I32) => i32.mul(max(f.i32(i32.sub(key, p.offset)), 0), p.group);
  return {
    begin,
    end,
    load: (scratch) => state.load(scratch),
    prepare(scratch) {
      state.setColumns(panel, scratch, (key) => [masks.unhidden(key), i32.load(masks.segmentAt(key))]);
      f.set(begin, firstOf(first));
      f.set(begin, i32.sub(begin, i32.remU(begin, panel.frame.library.panelRows)));
      f.set(end, p.t);
      const look = i32.add(i32.sub(end, 1), p.offset);
      f.if(p.segments, () => emitSkip(f, masks, segments, { from: end, to: f.i32(0), step: -1, look }));
      f.set(end, i32.mul(end, p.group));
      f.set(open, i32.select(masks.isGiven, end, firstOf(i32.sub(i32.add(first, rows), 1))));
      state.saveRange(scratch);
    },
    each({ start, count }, pointers, body) {
      const query = f.i32(start);
      const to = f.i32(i32.add(start, count));
      const keys = eight((half) =>
        f.v128(i32x4.add(v128.constant([0, 1, 2, 3]), i32x4.splat(i32.add(first, 4 * half)))),
      );
      emitLoop(f, query, f.i32(i32.min(to, open)), pointers, () => {
        const at = f.i32(i32.add(i32.divU(query, p.group), p.offset));
        const segment = f.v128(v128.load32Splat(masks.segmentAt(at)));
        const position = f.v128(i32x4.splat(at));
        const visible = (half: 0 | 1) => {
          const among = v128.and(i32x4.eq(segments[half], segment), unhidden[half]);
          return f.v128(v128.andNot(among, i32x4.gtS(keys[half], position)));
        };
        body(eight(visible));
      });
      emitLoop(f, query, to, pointers, () => body(null));
    },
  };
}
