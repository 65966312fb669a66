/**
 * rmsNorm and layerNorm over rows of `c` elements, forward and backward. The two differ by the mean that layerNorm
 * subtracts, so each kernel is emitted twice; addresses of operands that an op lacks are 0.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { forRows } from "./tasks.ts";
import {
  accumulators,
  at,
  type Body,
  type Elements,
  forVectors,
  type Round,
  rowAt,
  setAll,
  sumLanes,
  summer,
} from "./vectors.ts";

/** An optional operand: itself or, if its address is 0, nothing. */
type Given = readonly Local<"i32">[];

/** Emits the code twice: with the operand, and without it for an address of 0. */
const ifGiven = (f: FunctionBuilder, operand: Local<"i32">, emit: (given: Given) => void): void =>
  f.if(
    operand,
    () => emit([operand]),
    () => emit([]),
  );

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
      const xRow = f.i32();
      const sumOf = summer(f);
      const [center, factor] = [f.v128(), f.v128()];
      const centerOf = (value: V128) => (centered ? f32x4.sub(value, center) : value);
      const findMean = (row: Local<"i32">) => {
        const sum = sumOf(c, [xRow], (sum, [x]) => f32x4.add(sum, x.load()));
        const value = f.f32(f32.div(sum, f32.convert(c)));
        f.if(mean, () => f.do(f32.store(at(mean, row), value)));
        f.set(center, f32x4.splat(value));
      };
      const write = (yRow: Local<"i32">, gains: Given, biases: Given) => {
        const one: Body = ([x, y, ...given]) => {
          const normal = f32x4.mul(centerOf(x.load()), factor);
          const scaled = gains.length > 0 ? f32x4.mul(normal, given[0].load()) : normal;
          y.store(biases.length > 0 ? f32x4.add(scaled, given[gains.length].load()) : scaled);
        };
        forVectors(f, c, [xRow, yRow, ...gains, ...biases], one, 2);
      };
      forRows(f, task, { rows, n }, (row) => {
        f.set(xRow, rowAt(x, row, c));
        if (centered) findMean(row);
        const squares = sumOf(c, [xRow], (sum, [x]) => {
          const value = f.v128(centerOf(x.load()));
          return f.madd(value, value, sum);
        });
        const meanSquare = f32.div(squares, f32.convert(c));
        const inverse = f.f32(f32.div(1, f32.sqrt(f32.add(meanSquare, eps))));
        f.if(rstd, () => f.do(f32.store(at(rstd, row), inverse)));
        f.set(factor, f32x4.splat(inverse));
        const yRow = f.i32(rowAt(y, row, c));
        ifGiven(f, gain, (gains) => {
          if (centered) ifGiven(f, bias, (biases) => write(yRow, gains, biases));
          else write(yRow, gains, []);
        });
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
      const dots = accumulators(f);
      const sums = centered ? accumulators(f) : [];
      const [center, factor, ofX, constant] = Array.from({ length: 4 }, () => f.v128());
      const centerOf = (value: V128) => (centered ? f32x4.sub(value, center) : value);
      /** A loop over a row with or without a gain, whose body gets g and the elements of the other operands. */
      const forGradients = (
        dyRow: Local<"i32">,
        others: readonly Local<"i32">[],
        body: (g: V128, elements: readonly Elements[], round: Round) => void,
        unroll: number,
      ) =>
        ifGiven(f, gain, (gains) => {
          const withGain: Body = ([dy, ...rest], round) => {
            const g = gains.length > 0 ? f32x4.mul(dy.load(), rest[0].load()) : dy.load();
            body(g, rest.slice(gains.length), round);
          };
          forVectors(f, c, [dyRow, ...gains, ...others], withGain, unroll);
        });
      forRows(f, task, { rows, n }, (row) => {
        if (centered) f.set(center, v128.load32Splat(at(mean, row)));
        const [dyRow, xRow, dxRow] = [dy, x, dx].map((base) => f.i32(rowAt(base, row, c)));
        setAll(f, [...dots, ...sums], f32x4.splat(0));
        const addTerms = (gradient: V128, [x]: readonly Elements[], { sum }: Round) => {
          const g = centered ? f.v128(gradient) : gradient;
          sum(dots, (dot) => f.madd(g, centerOf(x.load()), dot));
          if (centered) sum(sums, (before) => f32x4.add(before, g));
        };
        forGradients(dyRow, [xRow], addTerms, dots.length);
        const r = f.f32(f32.load(at(rstd, row)));
        f.set(factor, f32x4.splat(r));
        const meanOf = (parts: readonly Local<"v128">[]) => f32.div(sumLanes(f, parts), f32.convert(c));
        // Not r³ · dot: r³ underflows from a magnitude of 1e13 on.
        f.set(ofX, f32x4.splat(f32.mul(f32.mul(r, r), f32.mul(r, f32.mul(meanOf(dots), -1)))));
        if (centered) f.set(constant, f32x4.splat(f32.mul(r, f32.mul(meanOf(sums), -1))));
        const write = (g: V128, [x, dx]: readonly Elements[]) => {
          const own = centered ? f.madd(g, factor, constant) : f32x4.mul(g, factor);
          dx.store(f.madd(centerOf(x.load()), ofX, own));
        };
        forGradients(dyRow, [xRow, dxRow], write, 1);
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
      const [dyRow, xRow, out] = [dy, x, dgain].map((base) => f.i32(at(base, first)));
      const [center, factor] = [f.v128(), f.v128()];
      f.if(i32.eqz(accumulate), () => f.zeroBytes(out, i32.mul(count, 4)));
      f.for(0, n, 1, (row) => {
        f.set(factor, v128.load32Splat(at(rstd, row)));
        if (centered) f.set(center, v128.load32Splat(at(mean, row)));
        forVectors(f, count, [dyRow, xRow, out], ([dy, x, dgain]) => {
          const value = centered ? f32x4.sub(x.load(), center) : x.load();
          dgain.store(f.madd(f32x4.mul(dy.load(), value), factor, dgain.load()));
        });
        f.set(dyRow, at(dyRow, c));
        f.set(xRow, at(xRow, c));
      });
    },
  );

export const rmsNormBackwardGain = normBackwardGain(false);
export const layerNormBackwardGain = normBackwardGain(true);
