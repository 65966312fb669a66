/** Who sees whom: a query the keys up to its position that no mask hides and that are of its segment. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, type I32, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { at, COLUMN_HALVES, type Eight, eight, type Panel, WORDS, type Words } from "./attention-panel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";

/** The score of what is not seen: finite, and no other score reaches it. */
export const HIDDEN = -3.0e38;

/** Part of what streams past: rows from `start` on. */
export type Window = Words<"start" | "count">;
export type Pointers = readonly (readonly [pointer: Local<"i32">, bytes: number])[];

/** The rows that a panel sees any of (or that see any of it), and loops over them. */
export interface Visibility {
  /** The first, a multiple of a left panel's rows, and the one after the last. */
  readonly begin: Local<"i32">;
  readonly end: Local<"i32">;
  /** Finds out what the panel sees, and keeps it at the words of scratch; later `load` takes it from there. */
  prepare(scratch: Local<"i32">): void;
  load(scratch: Local<"i32">): void;
  /**
   * Runs the body for each row of a window; pointers move on by their bytes. `seen` is null where all see all: that is code
   * of its own, without comparisons, and most of the rows where nothing is marked.
   */
  each(window: Window, pointers: Pointers, body: (seen: Eight<V128> | null) => void): void;
}

type Extents = Words<"t" | "s" | "g" | "group" | "offset" | "mask" | "segments" | "oneAt">;

/** Masks of a batch row's keys by position. Where there are none, a word at address 0 or a byte of scratch stands for all. */
interface Masks {
  segmentAt(position: I32): Expr<"i32">;
  /** All bits where the key is visible. */
  visible(position: I32): Expr<"i32">;
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
  const base = f.i32(i32.select(segments, at(segments, first, 4), 0));
  const word = f.i32(i32.select(segments, 4, 0));
  const maskBase = f.i32(i32.select(mask, i32.add(mask, first), one));
  const byte = f.i32(i32.ne(mask, 0));
  return {
    segmentAt: (position) => at(base, position, word),
    visible: (position) => i32.sub(0, i32.ne(i32.load8U(at(maskBase, position, byte)), 0)),
    isGiven: f.i32(i32.or(mask, segments)),
  };
}

/** What a panel keeps between windows: two words of each column, and the rows it sees. */
class PanelRange {
  readonly #f: FunctionBuilder;
  readonly columns: Eight<Eight<Local<"v128">>>;
  readonly begin: Local<"i32">;
  readonly end: Local<"i32">;
  /** Where rows begin, or end, that see or are seen by all. */
  readonly open: Local<"i32">;

  constructor(f: FunctionBuilder) {
    this.#f = f;
    this.columns = eight(() => eight(() => f.v128()));
    [this.begin, this.end, this.open] = [f.i32(), f.i32(), f.i32()];
  }

  /** The words of the panel's columns; one that does not exist repeats the last. */
  setColumns(
    { first, n }: Panel,
    scratch: Local<"i32">,
    of: (row: Local<"i32">) => Eight<Expr<"i32">>,
  ): void {
    const f = this.#f;
    const [column, row] = [f.i32(), f.i32()];
    f.for(column, 0, PANEL_COLS, 1, () => {
      f.set(row, i32.min(f.i32(i32.add(first, column)), i32.sub(n, 1)));
      const to = f.i32(at(scratch, column, 4));
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

/** The rows of a panel's visibility, of which those from `skip` while no segment is a column's are left out. */
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

/** Of queries, past which keys stream. */
export function emitQueryVisibility(panel: Panel, p: Extents, head: Local<"i32">): Visibility {
  const { f, first, rows } = panel;
  const masks = emitMasks(panel, p, i32.divU(head, p.g));
  const range = new PanelRange(f);
  const { begin, end, open } = range;
  const [positions, segments] = range.columns;
  const positionOf = (row: I32) => i32.add(i32.divU(row, p.group), p.offset);
  return {
    begin,
    end,
    load: (scratch) => range.load(scratch),
    prepare(scratch) {
      range.setColumns(panel, scratch, (row) => {
        const position = f.i32(positionOf(row));
        return [position, i32.load(masks.segmentAt(position))];
      });
      f.set(end, i32.add(positionOf(i32.sub(i32.add(first, rows), 1)), 1));
      f.set(end, i32.min(p.s, end));
      f.set(begin, 0);
      f.if(p.segments, () => emitSkip(f, masks, segments, { from: begin, to: end, step: 1, look: begin }));
      f.set(begin, i32.sub(begin, i32.remU(begin, panel.frame.library.panelRows)));
      f.set(open, i32.select(masks.isGiven, 0, i32.add(positionOf(first), 1)));
      range.saveRange(scratch);
    },
    each({ start, count }, pointers, body) {
      const key = f.i32(start);
      const to = f.i32(i32.add(start, count));
      emitLoop(f, key, f.i32(i32.min(to, open)), pointers, () => body(null));
      emitLoop(f, key, to, pointers, () => {
        const segment = f.v128(v128.load32Splat(masks.segmentAt(key)));
        const visible = f.v128(i32x4.splat(masks.visible(key)));
        const position = f.v128(i32x4.splat(key));
        const seen = (half: 0 | 1) => {
          const among = v128.and(i32x4.eq(segments[half], segment), visible);
          return f.v128(v128.andNot(among, i32x4.gtS(position, positions[half])));
        };
        body(eight(seen));
      });
    },
  };
}

/** Of keys, past which the queries of all heads of their group stream: row i is at position i / group. */
export function emitKeyVisibility(panel: Panel, p: Extents, head: Local<"i32">): Visibility {
  const { f, first, rows } = panel;
  const masks = emitMasks(panel, p, i32.divU(head, p.g));
  const range = new PanelRange(f);
  const { begin, end, open } = range;
  const [visible, segments] = range.columns;
  /** The first row that sees a key, among those that exist. */
  const firstOf = (key: I32) => i32.mul(max(f.i32(i32.sub(key, p.offset)), 0), p.group);
  return {
    begin,
    end,
    load: (scratch) => range.load(scratch),
    prepare(scratch) {
      range.setColumns(panel, scratch, (key) => [masks.visible(key), i32.load(masks.segmentAt(key))]);
      f.set(begin, firstOf(first));
      f.set(begin, i32.sub(begin, i32.remU(begin, panel.frame.library.panelRows)));
      f.set(end, p.t);
      const look = i32.add(i32.sub(end, 1), p.offset);
      f.if(p.segments, () => emitSkip(f, masks, segments, { from: end, to: f.i32(0), step: -1, look }));
      f.set(end, i32.mul(end, p.group));
      f.set(open, i32.select(masks.isGiven, end, firstOf(i32.sub(i32.add(first, rows), 1))));
      range.saveRange(scratch);
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
        const seen = (half: 0 | 1) => {
          const among = v128.and(i32x4.eq(segments[half], segment), visible[half]);
          return f.v128(v128.andNot(among, i32x4.gtS(keys[half], position)));
        };
        body(eight(seen));
      });
      emitLoop(f, query, to, pointers, () => body(null));
    },
  };
}
