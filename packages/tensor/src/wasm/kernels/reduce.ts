/** Sums, extremes, copies and repeats along an axis of [outer, length, inner], and sums of squares. */
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { forRows, rowAt, wordAt } from "./tasks.ts";
import { forVectors, maximizer, splat, summer } from "./vectors.ts";

/** y[row] = factor · Σ x[row, ...], or of the squares, over rows of `c` of the `size` elements; the last row may be shorter. */
const sumRowsOf = (squares: boolean) =>
  defineKernel(
    { ...words("x", "y", "n", "c", "size", "rows"), factor: "f32" } as const,
    (f, { x, y, n, c, size, factor, rows }, { task }) => {
      const at = f.i32();
      const sumOf = summer(f);
      forRows(f, task, { rows, n }, (row) => {
        f.set(at, rowAt(x, row, c));
        const count = f.i32(i32.min(f.i32(i32.sub(size, i32.mul(row, c))), c));
        const sum = sumOf(count, [at], (sum, { load }) => {
          if (!squares) return f32x4.add(sum, load(at));
          const value = f.v128(load(at));
          return f.madd(value, value, sum);
        });
        f.do(f32.store(wordAt(y, row), f32.mul(sum, factor)));
      });
    },
  );

export const sumRows = sumRowsOf(false);
export const sumSquaresOfRows = sumRowsOf(true);

/** y[o, i] = factor · Σ_l x[o, l, i]; a task is `cols` elements of one o, summed in order of l. */
export const sumColumns = defineKernel(
  { x: "i32", y: "i32", length: "i32", inner: "i32", factor: "f32", cols: "i32", parts: "i32" },
  (f, { x, y, length, inner, factor, cols, parts }, { task }) => {
    const outer = f.i32(i32.divU(task, parts));
    const first = f.i32(i32.mul(i32.remU(task, parts), cols));
    const count = f.i32(i32.min(f.i32(i32.sub(inner, first)), cols));
    const [row, from, to, next] = [f.i32(), f.i32(), f.i32(), f.i32()];
    const start = f.i32(i32.add(y, i32.mul(i32.add(i32.mul(outer, inner), first), 4)));
    f.set(next, i32.add(x, i32.mul(i32.add(i32.mul(i32.mul(outer, length), inner), first), 4)));
    f.zeroBytes(start, i32.mul(count, 4));
    f.for(row, 0, length, 1, () => {
      f.set(from, next);
      f.set(to, start);
      forVectors(f, count, [from, to], ({ load, store }) => store(to, f32x4.add(load(to), load(from))));
      f.set(next, i32.add(next, i32.mul(inner, 4)));
    });
    f.set(to, start);
    const all = splat(f, factor);
    forVectors(f, count, [to], ({ load, store }) => store(to, f32x4.mul(load(to), all)));
  },
);

/** y = factor · Σ partials, plus the old y if `accumulate`. */
export const finishSum = defineKernel(
  { partials: "i32", y: "i32", n: "i32", factor: "f32", accumulate: "i32" },
  (f, { partials, y, n, factor, accumulate }) => {
    const [sum, i] = [f.f32(), f.i32()];
    f.for(i, 0, n, 1, () => f.set(sum, f32.add(sum, f32.load(i32.add(partials, i32.mul(i, 4))))));
    f.set(sum, f32.mul(sum, factor));
    f.if(accumulate, () => f.set(sum, f32.add(sum, f32.load(y))));
    f.do(f32.store(y, sum));
  },
);

/** norm = √sumSquares, factor = min(1, maxNorm / (norm + 1e-6)). */
export const clipFactor = defineKernel(
  { sumSquares: "i32", factor: "i32", norm: "i32", maxNorm: "f32" },
  (f, { sumSquares, factor, norm, maxNorm }) => {
    const root = f.f32(f32.sqrt(f32.load(sumSquares)));
    f.do(f32.store(norm, root), f32.store(factor, f32.min(1, f32.div(maxNorm, f32.add(root, 1e-6)))));
  },
);

/** Copies rows of bytes between arrays of different strides: for caches, slices and concatenation. A task is `rows` rows. */
export const copyRows = defineKernel(
  {
    ...words("from", "fromAt", "to", "toAt", "n"),
    ...words("bytes", "fromRow", "toRow", "rows"),
  } as const,
  (f, { from, fromAt, to, toAt, n, bytes, fromRow, toRow, rows }, { task }) => {
    f.set(from, i32.add(from, fromAt));
    f.set(to, i32.add(to, toAt));
    forRows(f, task, { rows, n }, (row) => {
      f.copyBytes(i32.add(to, i32.mul(row, toRow)), i32.add(from, i32.mul(row, fromRow)), bytes);
    });
  },
);

/** x repeated along an axis: y[o, l, i] = x[o, i]; a task is `rows` values of (o, l). */
export const repeatRows = defineKernel(
  { x: "i32", y: "i32", n: "i32", length: "i32", inner: "i32", rows: "i32" },
  (f, { x, y, n, length, inner, rows }, { task }) => {
    const bytes = f.i32(i32.mul(inner, 4));
    const to = f.i32();
    forRows(f, task, { rows, n }, (row) => {
      const from = f.i32(i32.add(x, i32.mul(i32.divU(row, length), bytes)));
      f.set(to, i32.add(y, i32.mul(row, bytes)));
      f.if(
        i32.eq(inner, 1),
        () => f.do(f32.store(to, f32.load(from))),
        () => f.copyBytes(to, from, bytes),
      );
    });
  },
);

/**
 * The largest (or smallest) of x[row, ...], `c` elements, and the position of the first that equals it; an address of 0
 * asks for no value or no index. A task is `rows` rows.
 */
const extremeRows = (direction: 1 | -1) =>
  defineKernel(
    words("x", "value", "index", "n", "c", "rows"),
    (f, { x, value, index, n, c, rows }, { task }) => {
      const [at, end] = [f.i32(), f.i32()];
      const largest = maximizer(f);
      const all = f.v128();
      /** The smallest is the largest of the negated elements. */
      const signed = (element: V128) => (direction > 0 ? element : f32x4.neg(element));
      forRows(f, task, { rows, n }, (row) => {
        const start = f.i32(rowAt(x, row, c));
        f.set(end, i32.add(start, i32.mul(c, 4)));
        f.set(at, start);
        f.set(all, signed(v128.load32Splat(start)));
        f.set(all, signed(f32x4.splat(largest(c, [at], ({ load }) => signed(load(at)), all))));
        f.set(at, start);
        f.while(
          i32.and(i32.leS(i32.sub(at, end), -16), i32.eqz(v128.anyTrue(f32x4.eq(v128.load(at), all)))),
          () => f.set(at, i32.add(at, 16)),
        );
        f.while(i32.and(i32.ltU(at, end), i32.eqz(f32.eq(f32.load(at), f32x4.lane(all, 0)))), () =>
          f.set(at, i32.add(at, 4)),
        );
        f.set(at, i32.select(i32.ltU(at, end), at, start));
        f.if(index, () => f.do(i32.store(wordAt(index, row), i32.shrU(i32.sub(at, start), 2))));
        f.if(value, () => f.do(f32.store(wordAt(value, row), f32.load(at))));
      });
    },
  );

export const maxRows = extremeRows(1);
export const minRows = extremeRows(-1);
