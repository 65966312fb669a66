/** Sums, extremes, copies and repeats along an axis of [outer, length, inner], and sums of squares. */
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { forRows, rowAt, SUM_CHUNK, startChunk, wordAt } from "./tasks.ts";
import { type Access, accumulators, forVectors, maxLanes, sumLanes } from "./vectors.ts";

const UNROLL = 4;

/** y[row] = factor · Σ x[row, ...] over `c` elements; a task is `rows` rows. */
export const sumRows = defineKernel(
  { x: "i32", y: "i32", n: "i32", c: "i32", factor: "f32", rows: "i32" },
  (f, { x, y, n, c, factor, rows }, { task }) => {
    const at = f.i32();
    const sums = accumulators(f, UNROLL);
    forRows(f, task, { rows, n }, (row) => {
      f.set(at, i32.add(x, i32.mul(i32.mul(row, c), 4)));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        c,
        [at],
        ({ load, round }) => f.set(sums[round], f32x4.add(sums[round], load(at))),
        UNROLL,
      );
      f.do(f32.store(i32.add(y, i32.mul(row, 4)), f32.mul(sumLanes(f, sums), factor)));
    });
  },
);

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
    const all = f.v128(f32x4.splat(factor));
    forVectors(f, count, [to], ({ load, store }) => store(to, f32x4.mul(load(to), all)));
  },
);

const partial = (squares: boolean) =>
  defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
    const count = startChunk(f, task, n, { x }, SUM_CHUNK);
    const sums = accumulators(f, UNROLL);
    const one = f.v128(f32x4.splat(1));
    forVectors(
      f,
      count,
      [x],
      ({ load, round }) => {
        const value = f.v128(load(x));
        f.set(sums[round], f.madd(value, squares ? value : one, sums[round]));
      },
      UNROLL,
    );
    f.do(f32.store(i32.add(y, i32.mul(task, 4)), sumLanes(f, sums)));
  });

/** y[task] = the sum of the task's SUM_CHUNK elements, or of their squares. */
export const partialSums = partial(false);
export const partialSquares = partial(true);

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
      const largest = accumulators(f, UNROLL);
      const all = f.v128();
      /** The smallest is the largest of the negated elements. */
      const signed = (element: V128) => (direction > 0 ? element : f32x4.neg(element));
      forRows(f, task, { rows, n }, (row) => {
        const start = f.i32(rowAt(x, row, c));
        f.set(end, i32.add(start, i32.mul(c, 4)));
        f.set(at, start);
        // Accumulators start from the first element. pmax keeps its first operand if a comparison is false, so a NaN wins only as
        // the first element.
        f.set(all, signed(v128.load32Splat(start)));
        for (const best of largest) f.set(best, all);
        const larger = ({ load, round, lanes }: Access) =>
          f.set(
            largest[round],
            f32x4.pmax(largest[round], signed(lanes === 4 ? load(at) : v128.load32Splat(at))),
          );
        forVectors(f, c, [at], larger, UNROLL);
        f.set(all, signed(f32x4.splat(maxLanes(f, largest))));
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
