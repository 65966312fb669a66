/** Kernels over rows: norms, softmax, rotation, lookup. A task is `rows` rows. */
import type { Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf } from "./math.ts";
import { forRows } from "./tasks.ts";
import { accumulators, forVectors, maxLanes, sumLanes } from "./vectors.ts";

/** Accumulators of a sum over a row: enough to hide the latency of an addition. */
const UNROLL = 4;

/** The address of a row of `c` floats. */
const rowAt = (base: Local<"i32">, row: Expr<"i32">, c: Local<"i32">) =>
  i32.add(base, i32.mul(i32.mul(row, c), 4));

const wordAt = (base: Local<"i32">, row: Expr<"i32">) => i32.add(base, i32.mul(row, 4));

export const rmsNorm = defineKernel(
  { x: "i32", gain: "i32", y: "i32", rstd: "i32", n: "i32", c: "i32", eps: "f32", rows: "i32" },
  (f, { x, gain, y, rstd, n, c, eps, rows }, { task }) => {
    const [xAt, yAt, gainAt] = [f.i32(), f.i32(), f.i32()];
    const sums = accumulators(f, UNROLL);
    const one = f.v128(f32x4.splat(1));
    const factor = f.v128();
    forRows(f, task, { rows, n }, (row) => {
      f.set(xAt, rowAt(x, row, c));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        c,
        [xAt],
        ({ load, round }) => {
          const value = f.v128(load(xAt));
          f.set(sums[round], f.madd(value, value, sums[round]));
        },
        UNROLL,
      );
      const mean = f32.div(sumLanes(f, sums), f32.convert(c));
      const inverse = f.f32(f32.div(1, f32.sqrt(f32.add(mean, eps))));
      f.if(rstd, () => f.do(f32.store(wordAt(rstd, row), inverse)));
      f.set(factor, f32x4.splat(inverse));
      f.set(xAt, rowAt(x, row, c));
      f.set(yAt, rowAt(y, row, c));
      f.set(gainAt, gain);
      f.if(
        gain,
        () =>
          forVectors(
            f,
            c,
            [xAt, yAt, gainAt],
            ({ load, store }) => store(yAt, f32x4.mul(f32x4.mul(load(xAt), factor), load(gainAt))),
            2,
          ),
        () =>
          forVectors(f, c, [xAt, yAt], ({ load, store }) =>
            store(yAt, f32x4.mul(f32x4.mul(load(xAt), factor), one)),
          ),
      );
    });
  },
);

/** dx = rstd (g - x · rstd² · mean(g · x)), g = dy · gain. Without a gain, `gain` points to ones. */
export const rmsNormBackwardX = defineKernel(
  { dy: "i32", x: "i32", rstd: "i32", gain: "i32", dx: "i32", n: "i32", c: "i32", rows: "i32" },
  (f, { dy, x, rstd, gain, dx, n, c, rows }, { task }) => {
    const [dyAt, xAt, dxAt, gainAt] = Array.from({ length: 4 }, () => f.i32());
    const sums = accumulators(f, UNROLL);
    const [factor, share] = [f.v128(), f.v128()];
    const start = (row: Local<"i32">) => {
      f.set(dyAt, rowAt(dy, row, c));
      f.set(xAt, rowAt(x, row, c));
      f.set(dxAt, rowAt(dx, row, c));
      f.set(gainAt, gain);
    };
    forRows(f, task, { rows, n }, (row) => {
      start(row);
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      const dot = (withGain: boolean) =>
        forVectors(
          f,
          c,
          withGain ? [dyAt, xAt, gainAt] : [dyAt, xAt],
          ({ load, round }) => {
            const g = withGain ? f32x4.mul(load(dyAt), load(gainAt)) : load(dyAt);
            f.set(sums[round], f.madd(g, load(xAt), sums[round]));
          },
          UNROLL,
        );
      f.if(
        gain,
        () => dot(true),
        () => dot(false),
      );
      const r = f.f32(f32.load(wordAt(rstd, row)));
      f.set(factor, f32x4.splat(r));
      const mean = f32.div(sumLanes(f, sums), f32.convert(c));
      f.set(share, f32x4.splat(f32.mul(f32.mul(r, f32.mul(r, r)), f32.mul(mean, -1))));
      start(row);
      const write = (withGain: boolean) =>
        forVectors(f, c, withGain ? [dyAt, xAt, dxAt, gainAt] : [dyAt, xAt, dxAt], ({ load, store }) => {
          const g = withGain ? f32x4.mul(load(dyAt), load(gainAt)) : load(dyAt);
          store(dxAt, f.madd(load(xAt), share, f32x4.mul(g, factor)));
        });
      f.if(
        gain,
        () => write(true),
        () => write(false),
      );
    });
  },
);

/** dgain[c] = Σ_n dy · x · rstd (+ dgain[c] when accumulate); a task is `cols` columns, a multiple of 4, and sums in order of n. */
export const rmsNormBackwardGain = defineKernel(
  words("dy", "x", "rstd", "dgain", "n", "c", "cols", "accumulate"),
  (f, { dy, x, rstd, dgain, n, c, cols, accumulate }, { task }) => {
    const first = f.i32(i32.mul(task, cols));
    const count = f.i32(i32.min(f.i32(i32.sub(c, first)), cols));
    const [row, dyAt, xAt, outAt, dyRow, xRow] = Array.from({ length: 6 }, () => f.i32());
    const factor = f.v128();
    const offset = i32.mul(first, 4);
    f.set(outAt, i32.add(dgain, offset));
    const zero = f.v128();
    f.if(i32.eqz(accumulate), () => forVectors(f, count, [outAt], ({ store }) => store(outAt, zero)));
    f.set(dyRow, i32.add(dy, offset));
    f.set(xRow, i32.add(x, offset));
    f.for(row, 0, n, 1, () => {
      f.set(factor, v128.load32Splat(wordAt(rstd, row)));
      f.set(dyAt, dyRow);
      f.set(xAt, xRow);
      f.set(outAt, i32.add(dgain, offset));
      forVectors(f, count, [dyAt, xAt, outAt], ({ load, store }) =>
        store(outAt, f.madd(f32x4.mul(load(dyAt), load(xAt)), factor, load(outAt))),
      );
      f.set(dyRow, i32.add(dyRow, i32.mul(c, 4)));
      f.set(xRow, i32.add(xRow, i32.mul(c, 4)));
    });
  },
);

/** softmax of rows without a mask. */
export const softmax = defineKernel(
  { x: "i32", y: "i32", n: "i32", c: "i32", rows: "i32" },
  (f, { x, y, n, c, rows }, { task }) => {
    const [xAt, yAt] = [f.i32(), f.i32()];
    const least = f.v128(f32x4.splat(-3.4028234663852886e38));
    const bests = accumulators(f, UNROLL);
    const sums = accumulators(f, 2);
    const [half, shift, factor] = [f.v128(f32x4.splat(0.5)), f.v128(), f.v128()];
    const exp = expOf(f);
    forRows(f, task, { rows, n }, (row) => {
      for (const best of bests) f.set(best, least);
      f.set(xAt, rowAt(x, row, c));
      // A row's last elements come one by one, with zeros beside them: those lanes must not count as a maximum.
      const words = f.i32(c);
      f.while(i32.geS(words, 4), () => {
        f.set(bests[0], f32x4.pmax(bests[0], v128.load(xAt)));
        f.set(xAt, i32.add(xAt, 16));
        f.set(words, i32.sub(words, 4));
      });
      f.while(i32.gtS(words, 0), () => {
        f.set(bests[1], f32x4.pmax(bests[1], v128.load32Splat(xAt)));
        f.set(xAt, i32.add(xAt, 4));
        f.set(words, i32.sub(words, 1));
      });
      const max = f.f32(maxLanes(f, bests));
      f.set(shift, f32x4.splat(f32.mul(max, 0.5)));
      f.set(xAt, rowAt(x, row, c));
      f.set(yAt, rowAt(y, row, c));
      // In halves: the difference of two finite numbers may overflow, that of their halves does not.
      forVectors(
        f,
        c,
        [xAt, yAt],
        ({ load, store }) => {
          const below = f.v128(f32x4.sub(f32x4.mul(load(xAt), half), shift));
          store(yAt, exp(f32x4.add(below, below)));
        },
        2,
      );
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      f.set(yAt, rowAt(y, row, c));
      forVectors(f, c, [yAt], ({ load, round }) => f.set(sums[round], f32x4.add(sums[round], load(yAt))), 2);
      f.set(factor, f32x4.splat(f32.div(1, sumLanes(f, sums))));
      f.set(yAt, rowAt(y, row, c));
      forVectors(f, c, [yAt], ({ load, store }) => store(yAt, f32x4.mul(load(yAt), factor)), 2);
    });
  },
);

/** dx = y (dy - Σ dy · y). */
export const softmaxBackward = defineKernel(
  { dy: "i32", y: "i32", dx: "i32", n: "i32", c: "i32", rows: "i32" },
  (f, { dy, y, dx, n, c, rows }, { task }) => {
    const [dyAt, yAt, dxAt] = [f.i32(), f.i32(), f.i32()];
    const sums = accumulators(f, UNROLL);
    const dot = f.v128();
    forRows(f, task, { rows, n }, (row) => {
      f.set(dyAt, rowAt(dy, row, c));
      f.set(yAt, rowAt(y, row, c));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        c,
        [dyAt, yAt],
        ({ load, round }) => f.set(sums[round], f.madd(load(dyAt), load(yAt), sums[round])),
        UNROLL,
      );
      f.set(dot, f32x4.splat(sumLanes(f, sums)));
      f.set(dyAt, rowAt(dy, row, c));
      f.set(yAt, rowAt(y, row, c));
      f.set(dxAt, rowAt(dx, row, c));
      forVectors(f, c, [dyAt, yAt, dxAt], ({ load, store }) =>
        store(dxAt, f32x4.mul(load(yAt), f32x4.sub(load(dyAt), dot))),
      );
    });
  },
);

/** Rotates elements i and i + p of each head; row `first` + n of all is a position of a batch row, with h heads of 2 p. */
export const rope = defineKernel(
  {
    ...words("x", "cos", "sin", "y", "first", "n", "t", "h", "p"),
    ...{ direction: "f32", rows: "i32" },
  } as const,
  (f, { x, cos, sin, y, first, n, t, h, p, direction, rows }, { task }) => {
    const [lowX, highX, lowY, highY, cosAt, sinAt, head] = Array.from({ length: 7 }, () => f.i32());
    const sign = f.v128(f32x4.splat(direction));
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
        f.set(lowX, highX); // where the next head begins
        f.set(lowY, highY);
      });
    });
  },
);

/** y[n] = table[ids[n]], rows of `bytes`, or zeros for an id outside 0 .. v - 1. */
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
