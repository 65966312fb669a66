/** Kernels over rows: softmax, rotary embedding, lookup in a table. A task is `rows` rows. */
import { LARGEST_F32 } from "../../dtype.ts";
import { f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf } from "./math.ts";
import { forRows, rowAt, wordAt } from "./tasks.ts";
import { type Access, forVectors, maximizer, splat, summer } from "./vectors.ts";

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
      const [xAt, yAt, maskAt] = [f.i32(), f.i32(), f.i32()];
      const masks = masked ? ([[maskAt, 1]] as const) : [];
      const smallest = splat(f, -LARGEST_F32);
      const [largest, sumOf] = [maximizer(f), summer(f, 2)];
      const [half, shift, factor] = [splat(f, 0.5), f.v128(), f.v128()];
      const exp = expOf(f);
      forRows(f, task, { rows, n }, (row) => {
        const maskRow = masked
          ? f.i32(i32.add(mask, i32.mul(i32.remU(i32.add(row, firstRow), maskRows), c)))
          : 0;
        f.set(xAt, rowAt(x, row, c));
        f.set(maskAt, maskRow);
        const visible = ({ load, loadMask }: Access) =>
          masked ? v128.bitselect(load(xAt), smallest, loadMask(maskAt)) : load(xAt);
        f.set(shift, f32x4.splat(f32.mul(largest(c, [xAt, ...masks], visible, smallest), 0.5)));
        f.set(xAt, rowAt(x, row, c));
        f.set(yAt, rowAt(y, row, c));
        f.set(maskAt, maskRow);
        const exponentiate = ({ load, loadMask, store }: Access) => {
          // x - max as twice (x/2 - max/2): the difference of two finite numbers may overflow, that of their halves does not.
          const difference = f.v128(f32x4.sub(f32x4.mul(load(xAt), half), shift));
          const value = exp(f32x4.add(difference, difference));
          store(yAt, masked ? v128.and(value, loadMask(maskAt)) : value);
        };
        forVectors(f, c, [xAt, yAt, ...masks], exponentiate, 2);
        f.set(yAt, rowAt(y, row, c));
        const sum = f.f32(sumOf(c, [yAt], (sum, { load }) => f32x4.add(sum, load(yAt))));
        const inverse = f32.div(1, sum);
        f.set(factor, f32x4.splat(masked ? f32.select(f32.gt(sum, 0), inverse, 0) : inverse));
        f.set(yAt, rowAt(y, row, c));
        forVectors(f, c, [yAt], ({ load, store }) => store(yAt, f32x4.mul(load(yAt), factor)), 2);
      });
    },
  );

export const softmax = softmaxOf(false);
export const softmaxMasked = softmaxOf(true);

/** dx = y (dy - Σ dy · y). */
export const softmaxBackward = defineKernel(
  { dy: "i32", y: "i32", dx: "i32", n: "i32", c: "i32", rows: "i32" },
  (f, { dy, y, dx, n, c, rows }, { task }) => {
    const [dyAt, yAt, dxAt] = [f.i32(), f.i32(), f.i32()];
    const sumOf = summer(f);
    const dot = f.v128();
    forRows(f, task, { rows, n }, (row) => {
      f.set(dyAt, rowAt(dy, row, c));
      f.set(yAt, rowAt(y, row, c));
      f.set(dot, f32x4.splat(sumOf(c, [dyAt, yAt], (sum, { load }) => f.madd(load(dyAt), load(yAt), sum))));
      f.set(dyAt, rowAt(dy, row, c));
      f.set(yAt, rowAt(y, row, c));
      f.set(dxAt, rowAt(dx, row, c));
      forVectors(f, c, [dyAt, yAt, dxAt], ({ load, store }) =>
        store(dxAt, f32x4.mul(load(yAt), f32x4.sub(load(dyAt), dot))),
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
    ...{ direction: "f32", rows: "i32" },
  } as const,
  (f, { x, cos, sin, y, first, n, t, h, p, direction, rows }, { task }) => {
    const [lowX, highX, lowY, highY, cosAt, sinAt, head] = Array.from({ length: 7 }, () => f.i32());
    const sign = splat(f, direction);
    const width = f.i32(i32.mul(p, 4));
    const rowBytes = f.i32(i32.mul(i32.mul(h, width), 2));
    forRows(f, task, { rows, n }, (row) => {
      const angles = f.i32(i32.mul(i32.remU(i32.add(row, first), t), width));
      f.set(lowX, i32.add(x, i32.mul(row, rowBytes)));
      f.set(lowY, i32.add(y, i32.mul(row, rowBytes)));
      f.for(head, 0, h, 1, () => {
        f.set(highX, i32.add(lowX, width));
        f.set(highY, i32.add(lowY, width));
        f.set(cosAt, i32.add(cos, angles));
        f.set(sinAt, i32.add(sin, angles));
        forVectors(f, p, [lowX, highX, lowY, highY, cosAt, sinAt], ({ load, store }) => {
          const [low, high] = [f.v128(load(lowX)), f.v128(load(highX))];
          const c = f.v128(load(cosAt));
          const s = f.v128(f32x4.mul(load(sinAt), sign));
          store(lowY, f32x4.sub(f32x4.mul(low, c), f32x4.mul(high, s)));
          store(highY, f.madd(high, c, f32x4.mul(low, s)));
        });
        f.set(lowX, highX); // by now at the start of the next head
        f.set(lowY, highY);
      });
    });
  },
);

/** y[n] = table[ids[n]] in rows of `bytes`, or zeros for an id outside 0 .. v - 1. */
export const embedding = defineKernel(
  { ids: "i32", table: "i32", y: "i32", n: "i32", v: "i32", bytes: "i32", rows: "i32" },
  (f, { ids, table, y, n, v, bytes, rows }, { task }) => {
    forRows(f, task, { rows, n }, (row) => {
      const id = f.i32(i32.load(wordAt(ids, row)));
      const target = i32.add(y, i32.mul(row, bytes));
      f.if(
        i32.ltU(id, v),
        () => f.copyBytes(target, i32.add(table, i32.mul(id, bytes)), bytes),
        () => f.zeroBytes(target, bytes),
      );
    });
  },
);

/** dtable[v] = Σ dy[n] over n with ids[n] = v, in order of n; a task is `rows` rows of the table. */
export const embeddingBackward = defineKernel(
  { dy: "i32", ids: "i32", dtable: "i32", tokens: "i32", n: "i32", c: "i32", rows: "i32" },
  (f, { dy, ids, dtable, tokens, n, c, rows }, { task }) => {
    const first = f.i32(i32.mul(task, rows));
    const count = f.i32(i32.min(f.i32(i32.sub(n, first)), rows));
    const rowBytes = f.i32(i32.mul(c, 4));
    f.zeroBytes(i32.add(dtable, i32.mul(first, rowBytes)), i32.mul(count, rowBytes));
    const [token, from, to] = [f.i32(), f.i32(), f.i32()];
    f.for(token, 0, tokens, 1, () => {
      const id = f.i32(i32.load(wordAt(ids, token)));
      f.if(i32.ltU(i32.sub(id, first), count), () => {
        f.set(from, i32.add(dy, i32.mul(token, rowBytes)));
        f.set(to, i32.add(dtable, i32.mul(id, rowBytes)));
        forVectors(f, c, [from, to], ({ load, store }) => store(to, f32x4.add(load(to), load(from))));
      });
    });
  },
);
