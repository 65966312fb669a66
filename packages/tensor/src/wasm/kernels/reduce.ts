/** Sums, extremes, copies and repeats along an axis of [outer, length, inner], and sums of squares. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { forRows } from "./tasks.ts";
import { at, forVectors, maximizer, rowAt, splat, summer } from "./vectors.ts";

/** y[row] = factor · Σ x[row, ...] over rows of `c` of the `size` elements; the last row may be shorter. */
export const sumRows = defineKernel(
  { ...words("x", "y", "n", "c", "size", "rows"), factor: "f32" } as const,
  (f, { x, y, n, c, size, factor, rows }, { task }) => {
    const sumOf = summer(f);
    forRows(f, task, { rows, n }, (row) => {
      const count = f.i32(i32.min(f.i32(i32.sub(size, i32.mul(row, c))), c));
      const sum = sumOf(count, [rowAt(x, row, c)], (sum, [x]) => f32x4.add(sum, x.load()));
      f.do(f32.store(at(y, row), f32.mul(sum, factor)));
    });
  },
);

/** totals[task] += Σ x² over every `s`-th chunk of `chunk` elements, from chunk number `task` on. */
export const sumSquares = defineKernel(words("x", "totals", "n", "s", "chunk"), (f, args, { task }) => {
  const { x, totals, n, s, chunk } = args;
  const sumOf = summer(f);
  const total = f.i32(at(totals, task));
  const stride = f.i32(i32.mul(s, chunk));
  f.for(i32.mul(task, chunk), n, stride, (first) => {
    const count = f.i32(i32.min(f.i32(i32.sub(n, first)), chunk));
    const sum = sumOf(count, [at(x, first)], (sum, [x]) => {
      const value = f.v128(x.load());
      return f.madd(value, value, sum);
    });
    f.do(f32.store(total, f32.add(f32.load(total), sum)));
  });
});

/** y[o, i] = factor · Σ_l x[o, l, i]; a task is `cols` elements of one o, summed in order of l. */
export const sumColumns = defineKernel(
  { x: "i32", y: "i32", length: "i32", inner: "i32", factor: "f32", cols: "i32", parts: "i32" },
  (f, { x, y, length, inner, factor, cols, parts }, { task }) => {
    const outer = f.i32(i32.divU(task, parts));
    const first = f.i32(i32.mul(i32.remU(task, parts), cols));
    const count = f.i32(i32.min(f.i32(i32.sub(inner, first)), cols));
    const to = f.i32(at(y, i32.add(i32.mul(outer, inner), first)));
    const from = f.i32(at(x, i32.add(i32.mul(i32.mul(outer, length), inner), first)));
    f.zeroBytes(to, i32.mul(count, 4));
    f.for(0, length, 1, () => {
      forVectors(f, count, [from, to], ([x, y]) => y.store(f32x4.add(y.load(), x.load())));
      f.set(from, at(from, inner));
    });
    const all = splat(f, factor);
    forVectors(f, count, [to], ([y]) => y.store(f32x4.mul(y.load(), all)));
  },
);

/** y = factor · Σ partials. */
export const finishSum = defineKernel(
  { partials: "i32", y: "i32", n: "i32", factor: "f32" },
  (f, { partials, y, n, factor }) => f.do(f32.store(y, f32.mul(sumInOrder(f, partials, n), factor))),
);

/** norm = √Σ sumSquares, factor = min(1, maxNorm / (norm + 1e-6)). */
export const clipFactor = defineKernel(
  { ...words("sumSquares", "factor", "norm", "n"), maxNorm: "f32" } as const,
  (f, { sumSquares, factor, norm, n, maxNorm }) => {
    const root = f.f32(f32.sqrt(sumInOrder(f, sumSquares, n)));
    f.do(f32.store(norm, root), f32.store(factor, f32.min(1, f32.div(maxNorm, f32.add(root, 1e-6)))));
  },
);

/** The sum of `n` values, few enough for one after the other. */
function sumInOrder(f: FunctionBuilder, values: Local<"i32">, n: Local<"i32">): Local<"f32"> {
  const sum = f.f32();
  f.for(0, n, 1, (i) => f.set(sum, f32.add(sum, f32.load(at(values, i)))));
  return sum;
}

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
      f.copyBytes(at(to, row, toRow), at(from, row, fromRow), bytes);
    });
  },
);

/** x repeated along an axis: y[o, l, i] = x[o, i]; a task is `rows` values of (o, l). */
export const repeatRows = defineKernel(
  words("x", "y", "n", "length", "inner", "rows"),
  (f, { x, y, n, length, inner, rows }, { task }) => {
    const bytes = f.i32(i32.mul(inner, 4));
    forRows(f, task, { rows, n }, (row) => {
      const from = f.i32(at(x, i32.divU(row, length), bytes));
      const to = f.i32(at(y, row, bytes));
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
      const [found, end] = [f.i32(), f.i32()];
      const largest = maximizer(f);
      const all = f.v128();
      /** The smallest is the largest of the negated elements. */
      const signed = (element: V128) => (direction > 0 ? element : f32x4.neg(element));
      forRows(f, task, { rows, n }, (row) => {
        const start = f.i32(rowAt(x, row, c));
        f.set(end, at(start, c));
        f.set(all, signed(v128.load32Splat(start)));
        f.set(all, signed(f32x4.splat(largest(c, [start], ([x]) => signed(x.load()), all))));
        f.set(found, start);
        f.while(
          i32.and(i32.leS(i32.sub(found, end), -16), i32.eqz(v128.anyTrue(f32x4.eq(v128.load(found), all)))),
          () => f.set(found, i32.add(found, 16)),
        );
        f.while(i32.and(i32.ltU(found, end), i32.eqz(f32.eq(f32.load(found), f32x4.lane(all, 0)))), () =>
          f.set(found, i32.add(found, 4)),
        );
        f.set(found, i32.select(i32.ltU(found, end), found, start));
        f.if(index, () => f.do(i32.store(at(index, row), i32.shrU(i32.sub(found, start), 2))));
        f.if(value, () => f.do(f32.store(at(value, row), f32.load(found))));
      });
    },
  );

export const maxRows = extremeRows(1);
export const minRows = extremeRows(-1);
