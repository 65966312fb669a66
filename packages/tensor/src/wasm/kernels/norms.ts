/**
 * rmsNorm and layerNorm over rows of `c` elements, forward and backward. The two differ by the mean that layerNorm
 * subtracts, so each kernel is emitted twice; addresses of operands that an op lacks are 0.
 */
import type { Local } from "../assembler/function.ts";
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { forRows, rowAt, wordAt } from "./tasks.ts";
import { type Access, accumulators, forVectors, setAll, sumLanes, summer } from "./vectors.ts";

/**
 * A task is `rows` rows.
 *
 *     for row of the task:
 *       m = centered ? Σ x / c : 0
 *       r = 1 / sqrt(Σ (x - m)² / c + eps)
 *       for c: y[c] = (x[c] - m) · r · gain[c] + bias[c]
 */
const normOf = (centered: boolean) =>
  defineKernel(
    {
      ...words("x", "gain", "bias", "y", "mean", "rstd", "n", "c", "rows"),
      eps: "f32",
    } as const,
    (f, { x, gain, bias, y, mean, rstd, n, c, rows, eps }, { task }) => {
      const [xAt, yAt, gainAt, biasAt] = Array.from({ length: 4 }, () => f.i32());
      const sumOf = summer(f);
      const [center, factor] = [f.v128(), f.v128()];
      const centerOf = (value: V128) => (centered ? f32x4.sub(value, center) : value);
      const findMean = (row: Local<"i32">) => {
        f.set(xAt, rowAt(x, row, c));
        const sum = sumOf(c, [xAt], (sum, { load }) => f32x4.add(sum, load(xAt)));
        const value = f.f32(f32.div(sum, f32.convert(c)));
        f.if(mean, () => f.do(f32.store(wordAt(mean, row), value)));
        f.set(center, f32x4.splat(value));
      };
      const write = (hasGain: boolean, hasBias: boolean) => {
        const pointers = [xAt, yAt, ...(hasGain ? [gainAt] : []), ...(hasBias ? [biasAt] : [])];
        const one = ({ load, store }: Access) => {
          const normal = f32x4.mul(centerOf(load(xAt)), factor);
          const scaled = hasGain ? f32x4.mul(normal, load(gainAt)) : normal;
          store(yAt, hasBias ? f32x4.add(scaled, load(biasAt)) : scaled);
        };
        forVectors(f, c, pointers, one, 2);
      };
      const writeWithGain = (hasGain: boolean) => {
        if (!centered) return write(hasGain, false);
        f.if(
          bias,
          () => write(hasGain, true),
          () => write(hasGain, false),
        );
      };
      forRows(f, task, { rows, n }, (row) => {
        if (centered) findMean(row);
        f.set(xAt, rowAt(x, row, c));
        const squares = sumOf(c, [xAt], (sum, { load }) => {
          const value = f.v128(centerOf(load(xAt)));
          return f.madd(value, value, sum);
        });
        const meanSquare = f32.div(squares, f32.convert(c));
        const inverse = f.f32(f32.div(1, f32.sqrt(f32.add(meanSquare, eps))));
        f.if(rstd, () => f.do(f32.store(wordAt(rstd, row), inverse)));
        f.set(factor, f32x4.splat(inverse));
        f.set(xAt, rowAt(x, row, c));
        f.set(yAt, rowAt(y, row, c));
        f.set(gainAt, gain);
        f.set(biasAt, bias);
        f.if(
          gain,
          () => writeWithGain(true),
          () => writeWithGain(false),
        );
      });
    },
  );

export const rmsNorm = normOf(false);
export const layerNorm = normOf(true);

/**
 * dx, with g = dy · gain and x̂ = x - mean (x itself in rmsNorm). A task is `rows` rows.
 *
 *     for row of the task:
 *       dot = Σ g · x̂ / c,  sum = centered ? Σ g / c : 0
 *       for c: dx[c] = r · g[c] - r³ · dot · x̂[c] - r · sum
 */
const normBackwardX = (centered: boolean) =>
  defineKernel(
    words("dy", "x", "mean", "rstd", "gain", "dx", "n", "c", "rows"),
    (f, { dy, x, mean, rstd, gain, dx, n, c, rows }, { task }) => {
      const [dyAt, xAt, dxAt, gainAt] = Array.from({ length: 4 }, () => f.i32());
      const dots = accumulators(f);
      const sums = centered ? accumulators(f) : [];
      const [center, factor, ofX, constant] = Array.from({ length: 4 }, () => f.v128());
      const centerOf = (value: V128) => (centered ? f32x4.sub(value, center) : value);
      const start = (row: Local<"i32">) => {
        f.set(dyAt, rowAt(dy, row, c));
        f.set(xAt, rowAt(x, row, c));
        f.set(dxAt, rowAt(dx, row, c));
        f.set(gainAt, gain);
      };
      /** A loop over a row with or without a gain, whose body gets g. */
      const forGradients = (
        pointers: readonly Local<"i32">[],
        body: (g: V128, access: Access) => void,
        unroll: number,
      ) => {
        const loop = (hasGain: boolean) =>
          forVectors(
            f,
            c,
            hasGain ? [...pointers, gainAt] : pointers,
            (access) => {
              const { load } = access;
              body(hasGain ? f32x4.mul(load(dyAt), load(gainAt)) : load(dyAt), access);
            },
            unroll,
          );
        f.if(
          gain,
          () => loop(true),
          () => loop(false),
        );
      };
      forRows(f, task, { rows, n }, (row) => {
        if (centered) f.set(center, v128.load32Splat(wordAt(mean, row)));
        start(row);
        setAll(f, [...dots, ...sums], f32x4.splat(0));
        const addTerms = (gradient: V128, { load, sum }: Access) => {
          const g = centered ? f.v128(gradient) : gradient;
          sum(dots, (dot) => f.madd(g, centerOf(load(xAt)), dot));
          if (centered) sum(sums, (before) => f32x4.add(before, g));
        };
        forGradients([dyAt, xAt], addTerms, dots.length);
        const r = f.f32(f32.load(wordAt(rstd, row)));
        f.set(factor, f32x4.splat(r));
        const meanOf = (parts: readonly Local<"v128">[]) => f32.div(sumLanes(f, parts), f32.convert(c));
        // Not r³ · dot: r³ underflows from a magnitude of 1e13 on.
        f.set(ofX, f32x4.splat(f32.mul(f32.mul(r, r), f32.mul(r, f32.mul(meanOf(dots), -1)))));
        if (centered) f.set(constant, f32x4.splat(f32.mul(r, f32.mul(meanOf(sums), -1))));
        start(row);
        const write = (g: V128, { load, store }: Access) => {
          const own = centered ? f.madd(g, factor, constant) : f32x4.mul(g, factor);
          store(dxAt, f.madd(centerOf(load(xAt)), ofX, own));
        };
        forGradients([dyAt, xAt, dxAt], write, 1);
      });
    },
  );

export const rmsNormBackwardX = normBackwardX(false);
export const layerNormBackwardX = normBackwardX(true);

/**
 * dgain[c] = Σ_n dy[n,c] · (x[n,c] - mean[n]) · rstd[n], plus dgain[c] if `accumulate`. A task is `cols` columns, a multiple
 * of 4, summed in order of n.
 */
const normBackwardGain = (centered: boolean) =>
  defineKernel(
    words("dy", "x", "mean", "rstd", "dgain", "n", "c", "cols", "accumulate"),
    (f, { dy, x, mean, rstd, dgain, n, c, cols, accumulate }, { task }) => {
      const first = f.i32(i32.mul(task, cols));
      const count = f.i32(i32.min(f.i32(i32.sub(c, first)), cols));
      const [row, dyAt, xAt, outAt, dyRow, xRow] = Array.from({ length: 6 }, () => f.i32());
      const [center, factor] = [f.v128(), f.v128()];
      const offset = i32.mul(first, 4);
      f.if(i32.eqz(accumulate), () => f.zeroBytes(i32.add(dgain, offset), i32.mul(count, 4)));
      f.set(dyRow, i32.add(dy, offset));
      f.set(xRow, i32.add(x, offset));
      f.for(row, 0, n, 1, () => {
        f.set(factor, v128.load32Splat(wordAt(rstd, row)));
        if (centered) f.set(center, v128.load32Splat(wordAt(mean, row)));
        f.set(dyAt, dyRow);
        f.set(xAt, xRow);
        f.set(outAt, i32.add(dgain, offset));
        forVectors(f, count, [dyAt, xAt, outAt], ({ load, store }) => {
          const value = centered ? f32x4.sub(load(xAt), center) : load(xAt);
          store(outAt, f.madd(f32x4.mul(load(dyAt), value), factor, load(outAt)));
        });
        f.set(dyRow, i32.add(dyRow, i32.mul(c, 4)));
        f.set(xRow, i32.add(xRow, i32.mul(c, 4)));
      });
    },
  );

export const rmsNormBackwardGain = normBackwardGain(false);
export const layerNormBackwardGain = normBackwardGain(true);
