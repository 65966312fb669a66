/**
 * Transposes: y has the axes of x in another order. If the last axis stays last, runs of bytes are copied. If it moves, the
 * matrix of the last axis of x (columns) and the last axis of y (rows) is transposed in registers, 4 x 4 elements at a time.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type I32, i32, v128 } from "../assembler/instructions.ts";
import { defineKernel, type Words, words } from "./kernel.ts";
import { transpose4 } from "./library.ts";
import { BAND, forRows, type OUTER_AXES, PART } from "./tasks.ts";
import { at } from "./vectors.ts";

const OUTER = [0, 1, 2, 3] as const satisfies { readonly length: typeof OUTER_AXES };
/** Rows of a block: their cache lines of x stay in the L1 cache while the loop goes over columns. */
const BLOCK = 16;

/**
 * Strides are in bytes. A task is `each` of the n units. A unit is one index of the outer axes with one of `parts` parts of the
 * rows, PART rows each, and one of `bands` bands of the columns, BAND columns each.
 */
const UNITS = words(
  ...(["x", "y", "n", "each", "rows", "parts", "cols", "bands"] as const),
  ...(["extent0", "extent1", "extent2", "extent3"] as const),
  ...(["x0", "x1", "x2", "x3", "y0", "y1", "y2", "y3"] as const),
);

interface Unit {
  /** Where the unit's matrix begins in x and in y. */
  readonly from: Local<"i32">;
  readonly to: Local<"i32">;
  readonly row: Local<"i32">;
  readonly rowEnd: Local<"i32">;
  readonly col: Local<"i32">;
  readonly colEnd: Local<"i32">;
}

/** Runs the body for each unit of the task. */
function forUnits(
  f: FunctionBuilder,
  p: Words<keyof typeof UNITS>,
  task: Local<"i32">,
  body: (unit: Unit) => void,
): void {
  const [rest, index, row, rowEnd, col, colEnd, from, to] = Array.from({ length: 8 }, () => f.i32());
  /** Splits `rest` into the index along an axis of this extent and the rest. */
  const take = (extent: Local<"i32">) => {
    f.set(index, i32.remU(rest, extent));
    f.set(rest, i32.divU(rest, extent));
  };
  forRows(f, task, { rows: p.each, n: p.n }, (unit) => {
    f.set(rest, unit);
    take(p.parts);
    f.set(row, i32.mul(index, PART));
    f.set(rowEnd, i32.min(f.i32(i32.add(row, PART)), p.rows));
    take(p.bands);
    f.set(col, i32.mul(index, BAND));
    f.set(colEnd, i32.min(f.i32(i32.add(col, BAND)), p.cols));
    f.set(from, p.x);
    f.set(to, p.y);
    for (const axis of OUTER) {
      f.if(rest, () => {
        take(p[`extent${axis}`]);
        f.set(from, at(from, index, p[`x${axis}`]));
        f.set(to, at(to, index, p[`y${axis}`]));
      });
    }
    body({ from, to, row, rowEnd, col, colEnd });
  });
}

/** Runs of more bytes than this are copied by memory.copy. */
const LONG_RUN = 1024;

/** Copies `bytes`, a multiple of 2. */
function copyRun(f: FunctionBuilder, to: Local<"i32">, from: Local<"i32">, bytes: Local<"i32">): void {
  f.if(
    i32.gtS(bytes, LONG_RUN),
    () => f.copyBytes(to, from, bytes),
    () => {
      const left = f.i32(bytes);
      const step = (count: number, move: () => void) => {
        f.while(i32.geS(left, count), () => {
          move();
          f.set(from, i32.add(from, count));
          f.set(to, i32.add(to, count));
          f.set(left, i32.sub(left, count));
        });
      };
      step(16, () => f.do(v128.store(to, v128.load(from))));
      step(4, () => f.do(i32.store(to, i32.load(from))));
      step(2, () => f.do(i32.store16(to, i32.load16U(from))));
    },
  );
}

/** y[..., row, :] = x[..., row, :]: runs of `cols` bytes, with one band. */
export const permuteRuns = defineKernel({ ...UNITS, ...words("xRow", "yRow") } as const, (f, p, { task }) => {
  forUnits(f, p, task, ({ from, to, row: start, rowEnd }) => {
    f.for(start, rowEnd, 1, (row) =>
      copyRun(f, f.i32(at(to, row, p.yRow)), f.i32(at(from, row, p.xRow)), p.cols),
    );
  });
});

/** How four elements are loaded, four vectors transposed and stored, and one element copied, by the bytes of an element. */
const ELEMENTS = {
  4: {
    loadVector: v128.load,
    transposed: (f: FunctionBuilder, four: ReturnType<typeof v128.load>[]) =>
      transpose4(f, four).map((value) => (to: I32) => v128.store(to, value)),
    move: (to: I32, from: I32) => i32.store(to, i32.load(from)),
  },
  2: {
    loadVector: v128.load64Zero,
    transposed(f: FunctionBuilder, [a, b, c, d]: ReturnType<typeof v128.load>[]) {
      const interleaved = [0, 1, 16, 17, 2, 3, 18, 19, 4, 5, 20, 21, 6, 7, 22, 23];
      const [low, high] = [
        f.v128(v128.shuffleBytes(a, b, interleaved)),
        f.v128(v128.shuffleBytes(c, d, interleaved)),
      ];
      const first = f.v128(v128.shuffle(low, high, [0, 4, 1, 5]));
      const second = f.v128(v128.shuffle(low, high, [2, 6, 3, 7]));
      return [first, second].flatMap((value) =>
        [0, 1].map((lane) => (to: I32) => v128.store64Lane(to, value, lane)),
      );
    },
    move: (to: I32, from: I32) => i32.store16(to, i32.load16U(from)),
  },
} as const;

/**
 * y[..., col, row] = x[..., row, col], elements of `size` bytes: columns are contiguous in x, rows in y.
 *
 *     for unit: for block of 16 rows: for four columns: for four rows: transpose 4 x 4
 */
const permuteBlocks = (size: 4 | 2) =>
  defineKernel({ ...UNITS, ...words("xRow", "yCol") } as const, (f, p, { task }) => {
    const { loadVector, transposed, move } = ELEMENTS[size];
    const [end, row, source, target] = Array.from({ length: 4 }, () => f.i32());
    const xRows = [0, 1, 2, 3].map((k) => f.i32(i32.mul(p.xRow, k)));
    const yCols = [0, 1, 2, 3].map((k) => f.i32(i32.mul(p.yCol, k)));
    /** Transposes four columns, four rows at a time. */
    const fourColumns = () => {
      f.while(i32.leS(i32.add(row, 4), end), () => {
        const four = xRows.map((offset) => f.v128(loadVector(i32.add(source, offset))));
        for (const [k, store] of transposed(f, four).entries()) f.do(store(i32.add(target, yCols[k])));
        f.set(source, at(source, p.xRow));
        f.set(target, i32.add(target, 4 * size));
        f.set(row, i32.add(row, 4));
      });
    };
    /** Copies the remaining rows, `count` columns of each, element by element. */
    const oneByOne = (count: I32) => {
      const last = f.i32(i32.mul(count, size));
      f.while(i32.ltS(row, end), () => {
        const [x, y] = [f.i32(source), f.i32(target)];
        f.while(i32.ltU(i32.sub(x, source), last), () => {
          f.do(move(y, x));
          f.set(x, i32.add(x, size));
          f.set(y, i32.add(y, p.yCol));
        });
        f.set(source, i32.add(source, p.xRow));
        f.set(target, i32.add(target, size));
        f.set(row, i32.add(row, 1));
      });
    };
    forUnits(f, p, task, ({ from, to, row: start, rowEnd, col: startCol, colEnd }) => {
      f.for(start, rowEnd, BLOCK, (first) => {
        f.set(end, i32.min(f.i32(i32.add(first, BLOCK)), rowEnd));
        f.for(startCol, colEnd, 4, (col) => {
          f.set(row, first);
          f.set(source, at(at(from, first, p.xRow), col, size));
          f.set(target, at(at(to, first, size), col, p.yCol));
          const count = f.i32(i32.min(f.i32(i32.sub(colEnd, col)), 4));
          f.if(i32.eq(count, 4), fourColumns);
          oneByOne(count);
        });
      });
    });
  });

export const permuteBlocks4 = permuteBlocks(4);
export const permuteBlocks2 = permuteBlocks(2);
