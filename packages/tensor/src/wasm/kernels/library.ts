/**
 * Functions that kernels call: the micro-kernel of matrix multiplication, and the packing of its operands. A matmul cuts c = a·b
 * into tiles of `panelRows` x PANEL_COLS. The rows of a tile's a are packed as a left panel [k][panelRows], the columns of its b
 * as a right panel [k][PANEL_COLS], so that the micro-kernel reads both in order:
 *
 *     sums[panelRows][2 vectors] = init or 0
 *     for step of k: for row: sums[row] += broadcast(a[step][row]) · b[step]
 *     c = sums
 */
import type { Callee, Features, FunctionBuilder, Local } from "../assembler/function.ts";
import { type I32, i32, type V128, v128 } from "../assembler/instructions.ts";
import type { ModuleBuilder } from "../assembler/module.ts";
import { bytesOf, loader, type Source } from "./f16.ts";
import { at } from "./vectors.ts";

/** Columns of a right panel: two vectors. */
export const PANEL_COLS = 8;
/** Bytes of one step of a right panel. */
export const PANEL_COL_BYTES = 4 * PANEL_COLS;

/**
 * Rows of a left panel. V8 puts all loads of a loop iteration before its arithmetic, so the accumulators of a tile, the operands of
 * one step and, without fused multiply-add, an intermediate result must fit in 15 registers; if they spill, the speed halves.
 * Measured on one core (GFLOP/s, EPYC 9004): fused 4 rows 50, 5: 50, 6: 55; separate 4: 41, 5: 44, 6: 28. Unrolling spills.
 */
export const panelRowsOf = ({ relaxedSimd }: Features): number => (relaxedSimd ? 6 : 5);

/** Rows of the short tile, for the end of attention's heads: with panels of 6 rows, D = 64 leaves 4 and D = 128 leaves 2. */
export const SHORT_ROWS = 4;

/** Bytes at the start of a thread's scratch that `edgeTile` uses. */
export const EDGE_BYTES = 256;

export interface Library {
  readonly panelRows: number;
  /**
   * (a, b, k, c, cRow, init, initRow): a full tile c[panelRows, 8] = init + a·b over k > 0 steps, from a left and a right panel.
   * `init` is the address of initial values or 0; cRow and initRow are row strides in bytes.
   */
  readonly tile: Callee;
  /** The same for the first SHORT_ROWS rows. */
  readonly shortTile: Callee;
  /** (..., rows, cols, scratch): the same for a tile at the edge of c, of which only `rows` x `cols` exist. */
  readonly edgeTile: Callee;
  /** (src, row stride in bytes, rows, k, dst): packs the transpose of `rows` rows of k elements, dst[k][width]. */
  readonly packRows: { readonly left: Callee; readonly right: Readonly<Record<Source, Callee>> };
  /** (base, position stride in bytes, group, first, end, k, dst): the same for rows `first` .. `end` of `HeadRows`. */
  readonly packHeads: { readonly left: Callee; readonly right: Callee };
  /** (src, row stride in bytes, k, dst): packs `width` columns of k rows, dst[k][width]. Reads past the last column. */
  readonly packColumns: { readonly left: Callee; readonly right: Readonly<Record<Source, Callee>> };
}

export function emitLibrary(m: ModuleBuilder): Library {
  const panelRows = panelRowsOf(m.options);
  const tile = emitTile(m, panelRows);
  const sources = (emit: (source: Source) => Callee) => ({ f32: emit("f32"), f16: emit("f16") });
  return {
    panelRows,
    tile,
    shortTile: emitTile(m, panelRows, SHORT_ROWS),
    edgeTile: emitEdgeTile(m, tile),
    packRows: {
      left: emitPackRows(m, panelRows, "f32"),
      right: sources((source) => emitPackRows(m, PANEL_COLS, source)),
    },
    packHeads: { left: emitPackHeads(m, panelRows), right: emitPackHeads(m, PANEL_COLS) },
    packColumns: {
      left: emitPackColumns(m, panelRows, "f32"),
      right: sources((source) => emitPackColumns(m, PANEL_COLS, source)),
    },
  };
}

function emitTile(m: ModuleBuilder, panelRows: number, rows = panelRows): Callee {
  return m.function(7, (f) => {
    const [a, b, k, c, cRow, init, initRow] = f.params;
    const each = <T>(make: (row: number, half: number) => T): T[] =>
      Array.from({ length: 2 * rows }, (_, i) => make(i >> 1, i & 1));
    const sums = each(() => f.v128());
    f.if(init, () => {
      each((row, half) => f.set(sums[2 * row + half], v128.load(at(init, initRow, row), 16 * half)));
    });
    const end = f.i32(i32.add(a, i32.mul(k, 4 * panelRows)));
    f.while(i32.ne(a, end), () => {
      const right = [f.v128(v128.load(b)), f.v128(v128.load(b, 16))];
      for (let row = 0; row < rows; row++) {
        const left = f.v128(v128.load32Splat(a, 4 * row));
        for (const half of [0, 1]) {
          const sum = sums[2 * row + half];
          f.set(sum, f.madd(left, right[half], sum));
        }
      }
      f.set(a, i32.add(a, 4 * panelRows));
      f.set(b, i32.add(b, PANEL_COL_BYTES));
    });
    each((row, half) => f.do(v128.store(at(c, cRow, row), sums[2 * row + half], 16 * half)));
  });
}

/** Copies `cols` words of each of `rows` rows. */
function emitCopyWords(
  f: FunctionBuilder,
  from: readonly [address: I32, row: I32],
  to: readonly [address: I32, row: I32],
  rows: I32,
  cols: I32,
): void {
  const end = f.i32(i32.mul(cols, 4));
  f.for(0, rows, 1, (row) => {
    const source = f.i32(at(from[0], row, from[1]));
    const target = f.i32(at(to[0], row, to[1]));
    f.for(0, end, 4, (byte) => f.do(i32.store(i32.add(target, byte), i32.load(i32.add(source, byte)))));
  });
}

function emitEdgeTile(m: ModuleBuilder, tile: Callee): Callee {
  return m.function(10, (f) => {
    const [a, b, k, c, cRow, init, initRow, rows, cols, scratch] = f.params;
    f.if(
      init,
      () => {
        emitCopyWords(f, [init, initRow], [scratch, PANEL_COL_BYTES], rows, cols);
        f.call(tile, a, b, k, scratch, PANEL_COL_BYTES, scratch, PANEL_COL_BYTES);
      },
      () => f.call(tile, a, b, k, scratch, PANEL_COL_BYTES, 0, 0),
    );
    emitCopyWords(f, [scratch, PANEL_COL_BYTES], [c, cRow], rows, cols);
  });
}

/** The transpose of four vectors. */
export function transpose4(f: FunctionBuilder, [a, b, c, d]: readonly V128[]): V128[] {
  const low = [f.v128(v128.shuffle(a, b, [0, 4, 1, 5])), f.v128(v128.shuffle(c, d, [0, 4, 1, 5]))];
  const high = [f.v128(v128.shuffle(a, b, [2, 6, 3, 7])), f.v128(v128.shuffle(c, d, [2, 6, 3, 7]))];
  return [low, high].flatMap(([x, y]) => [
    v128.shuffle(x, y, [0, 1, 4, 5]),
    v128.shuffle(x, y, [2, 3, 6, 7]),
  ]);
}

/** Stores the first `count` words of a vector. */
export function storeWords(
  f: FunctionBuilder,
  address: I32,
  value: V128,
  count: number,
  offset: number,
): void {
  if (count >= 4) f.do(v128.store(address, value, offset));
  else if (count === 1) f.do(v128.store32Lane(address, value, 0, offset));
  else f.do(v128.store64Lane(address, value, 0, offset));
}

/** Stores the transpose of 4, 2 or 1 vectors: dst[step][first ..] for steps 0 .. 3, with rows of `width` words. */
function storeColumns(
  f: FunctionBuilder,
  dst: Local<"i32">,
  rows: readonly Local<"v128">[],
  width: number,
  first: number,
): void {
  const offset = (step: number) => 4 * (width * step + first);
  if (rows.length === 4) {
    for (const [step, column] of transpose4(f, rows).entries()) f.do(v128.store(dst, column, offset(step)));
  } else if (rows.length === 2) {
    const pairs = [
      v128.shuffle(rows[0], rows[1], [0, 4, 1, 5]),
      v128.shuffle(rows[0], rows[1], [2, 6, 3, 7]),
    ];
    for (const [i, pair] of pairs.map((pair) => f.v128(pair)).entries()) {
      for (const lane of [0, 1]) f.do(v128.store64Lane(dst, pair, lane, offset(2 * i + lane)));
    }
  } else for (let step = 0; step < 4; step++) f.do(v128.store32Lane(dst, rows[0], step, offset(step)));
}

function emitPackRows(m: ModuleBuilder, width: number, source: Source): Callee {
  return m.function(5, (f) => {
    const [src, srcRow, rows, k, dst] = f.params;
    const last = f.i32(i32.sub(rows, 1));
    // Rows past the end read the last one; nobody reads the results.
    const starts = Array.from({ length: width }, (_, row) => f.i32(at(src, srcRow, i32.min(last, row))));
    emitTransposed(f, starts, source, k, dst);
  });
}

function emitPackHeads(m: ModuleBuilder, width: number): Callee {
  return m.function(7, (f) => {
    const [base, position, group, first, end, k, dst] = f.params;
    const last = f.i32(i32.sub(end, 1));
    const starts = Array.from({ length: width }, (_, i) => {
      const row = f.i32(i32.min(f.i32(i32.add(first, i)), last));
      const head = i32.mul(i32.remU(row, group), i32.mul(k, 4));
      return f.i32(i32.add(at(base, i32.divU(row, group), position), head));
    });
    emitTransposed(f, starts, "f32", k, dst);
  });
}

/** dst[k][rows] from k elements at each pointer; moves the pointers. */
function emitTransposed(
  f: FunctionBuilder,
  pointers: readonly Local<"i32">[],
  source: Source,
  k: Local<"i32">,
  dst: Local<"i32">,
): void {
  const width = pointers.length;
  const load4 = loader(f, source);
  const advance = (elements: number) => {
    for (const pointer of pointers) f.set(pointer, i32.add(pointer, elements * bytesOf(source)));
    f.set(dst, i32.add(dst, 4 * width * elements));
    f.set(k, i32.sub(k, elements));
  };
  f.while(i32.geS(k, 4), () => {
    for (let first = 0; first < width; first += 4) {
      const rows = pointers.slice(first, first + 4).map((pointer) => f.v128(load4(pointer)));
      storeColumns(f, dst, rows, width, first);
    }
    advance(4);
  });
  f.while(i32.gtS(k, 0), () => {
    for (const [row, pointer] of pointers.entries()) f.do(v128.store32Lane(dst, load4(pointer), 0, 4 * row));
    advance(1);
  });
}

function emitPackColumns(m: ModuleBuilder, width: number, source: Source): Callee {
  return m.function(4, (f) => {
    const [src, srcRow, k, dst] = f.params;
    const load4 = loader(f, source);
    f.while(i32.gtS(k, 0), () => {
      for (let first = 0; first < width; first += 4) {
        storeWords(f, dst, load4(src, first * bytesOf(source)), width - first, 4 * first);
      }
      f.set(src, i32.add(src, srcRow));
      f.set(dst, i32.add(dst, 4 * width));
      f.set(k, i32.sub(k, 1));
    });
  });
}

/** Calls the full tile, or at the edge of c the edge tile. */
export function emitTileCall(
  f: FunctionBuilder,
  { tile, edgeTile, panelRows }: Library,
  args: readonly I32[],
  extent: { readonly rows: Local<"i32">; readonly cols: Local<"i32">; readonly scratch: I32 },
): void {
  const { rows, cols, scratch } = extent;
  f.if(
    i32.and(i32.geS(rows, panelRows), i32.geS(cols, PANEL_COLS)),
    () => f.call(tile, ...args),
    () => f.call(edgeTile, ...args, i32.min(rows, panelRows), i32.min(cols, PANEL_COLS), scratch),
  );
}
