/** Kernels over rows: softmax, rotary embedding, lookup in a table. A task is `rows` rows. */
import { LARGEST_F32 } from "../../dtype.ts";
import { f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf } from "./math.ts";
import { forRows } from "./tasks.ts";
import { at, type Body, type Elements, forVectors, maximizer, rowAt, splat, summer } from "./vectors.ts";

/**
 * y = e^(x - max) / Σ e^(x - max) by row; with a mask, over the elements whose byte of the mask is not 0, and 0 elsewhere.
 * Row n of x has row (firstRow + n) mod maskRows of the mask.
 *
 *     for row of the task:
 *       max = largest visible x
 *       for c: y[c] = visible ? e^(x[c] - max) : 0
 *       sum = Σ y
 *       for c: y[c] /= sum
 */
const softmaxOf = (masked: boolean) =>
  defineKernel(
    words("x", "mask", "y", "n", "c", "firstRow", "maskRows", "rows"),
    (f, { x, mask, y, n, c, firstRow, maskRows, rows }, { task }) => {
      const smallest = splat(f, -LARGEST_F32);
      const [largest, sumOf] = [maximizer(f), summer(f, 2)];
      const [half, shift, factor] = [splat(f, 0.5), f.v128(), f.v128()];
      const exp = expOf(f);
      forRows(f, task, { rows, n }, (row) => {
        const [xRow, yRow] = [x, y].map((base) => f.i32(rowAt(base, row, c)));
        const maskRow = masked
          ? ([[f.i32(at(mask, i32.remU(i32.add(row, firstRow), maskRows), c)), 1]] as const)
          : [];
        const visible = ([x, mask]: readonly Elements[]) =>
          masked ? v128.bitselect(x.load(), smallest, mask.loadMask()) : x.load();
        f.set(shift, f32x4.splat(f32.mul(largest(c, [xRow, ...maskRow], visible, smallest), 0.5)));
        const exponentiate: Body = ([x, y, mask]) => {
          // x - max as twice (x/2 - max/2): the difference of two finite numbers may overflow, that of their halves does not.
          const difference = f.v128(f32x4.sub(f32x4.mul(x.load(), half), shift));
          const value = exp(f32x4.add(difference, difference));
          y.store(masked ? v128.and(value, mask.loadMask()) : value);
        };
        forVectors(f, c, [xRow, yRow, ...maskRow], exponentiate, 2);
        const sum = f.f32(sumOf(c, [yRow], (sum, [y]) => f32x4.add(sum, y.load())));
        const inverse = f32.div(1, sum);
        f.set(factor, f32x4.splat(masked ? f32.select(f32.gt(sum, 0), inverse, 0) : inverse));
        forVectors(f, c, [yRow], ([y]) => y.store(f32x4.mul(y.load(), factor)), 2);
      });
    },
  );

export const softmax = softmaxOf(false);
export const softmaxMasked = softmaxOf(true);

/** dx = y (dy - Σ dy · y). */
export const softmaxBackward = defineKernel(
  words("dy", "y", "dx", "n", "c", "rows"),
  (f, { dy, y, dx, n, c, rows }, { task }) => {
    const sumOf = summer(f);
    const dot = f.v128();
    forRows(f, task, { rows, n }, (row) => {
      const [dyRow, yRow, dxRow] = [dy, y, dx].map((base) => f.i32(rowAt(base, row, c)));
      f.set(dot, f32x4.splat(sumOf(c, [dyRow, yRow], (sum, [dy, y]) => f.madd(dy.load(), y.load(), sum))));
      forVectors(f, c, [dyRow, yRow, dxRow], ([dy, y, dx]) =>
        dx.store(f32x4.mul(y.load(), f32x4.sub(dy.load(), dot))),
      );
    });
  },
);

/**
 * Rotates elements i and i + p of each head by the angle i of the row's position; `direction` -1 rotates back. Row n is position
 * (first + n) mod t, with h heads of 2 p elements.
 */
export const rope = defineKernel(
  {
    ...words("x", "cos", "sin", "y", "first", "n", "t", "h", "p"),
    direction: "f32",
    rows: "i32",
  } as const,
  (f, { x, cos, sin, y, first, n, t, h, p, direction, rows }, { task }) => {
    const sign = splat(f, direction);
    const width = f.i32(i32.mul(p, 4));
    const rowBytes = f.i32(i32.mul(i32.mul(h, width), 2));
    forRows(f, task, { rows, n }, (row) => {
      const angles = f.i32(i32.mul(i32.remU(i32.add(row, first), t), width));
      const [from, to] = [f.i32(at(x, row, rowBytes)), f.i32(at(y, row, rowBytes))];
      f.for(0, h, 1, () => {
        const halves = [from, to].flatMap((head) => [head, i32.add(head, width)]);
        const tables = [cos, sin].map((table) => i32.add(table, angles));
        forVectors(f, p, [...halves, ...tables], ([lowX, highX, lowY, highY, cos, sin]) => {
          const [low, high] = [f.v128(lowX.load()), f.v128(highX.load())];
          const c = f.v128(cos.load());
          const s = f.v128(f32x4.mul(sin.load(), sign));
          lowY.store(f32x4.sub(f32x4.mul(low, c), f32x4.mul(high, s)));
          highY.store(f.madd(high, c, f32x4.mul(low, s)));
        });
        for (const head of [from, to]) f.set(head, at(head, width, 2));
      });
    });
  },
);

/** y[n] = table[ids[n]] in rows of `bytes`, or zeros for an id outside 0 .. v - 1. */
export const embedding = defineKernel(
  words("ids", "table", "y", "n", "v", "bytes", "rows"),
  (f, { ids, table, y, n, v, bytes, rows }, { task }) => {
    forRows(f, task, { rows, n }, (row) => {
      const id = f.i32(i32.load(at(ids, row)));
      const target = at(y, row, bytes);
      f.if(
        i32.ltU(id, v),
        () => f.copyBytes(target, at(table, id, bytes), bytes),
        () => f.zeroBytes(target, bytes),
      );
    });
  },
);

/** dtable[v] = Σ dy[n] over n with ids[n] = v, in order of n; a task is `rows` rows of the table. */
export const embeddingBackward = defineKernel(
  words("dy", "ids", "dtable", "tokens", "n", "c", "rows"),
  (f, { dy, ids, dtable, tokens, n, c, rows }, { task }) => {
    const first = f.i32(i32.mul(task, rows));
    const count = f.i32(i32.min(f.i32(i32.sub(n, first)), rows));
    const rowBytes = f.i32(i32.mul(c, 4));
    f.zeroBytes(at(dtable, first, rowBytes), i32.mul(count, rowBytes));
    f.for(0, tokens, 1, (token) => {
      const id = f.i32(i32.load(at(ids, token)));
      f.if(i32.ltU(i32.sub(id, first), count), () => {
        const [from, to] = [at(dy, token, rowBytes), at(dtable, id, rowBytes)];
        forVectors(f, c, [from, to], ([dy, sum]) => sum.store(f32x4.add(sum.load(), dy.load())));
      });
    });
  },
);
