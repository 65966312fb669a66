/**
 * y = x · wᵀ (+ bias) with few rows of x, as for one token: the cost is reading the weight once. A task is `rows` rows of w.
 *
 *     for row of w: for m: y[m, row] = bias[row] + dot(x[m], w[row])
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { bytesOf, loader, type Source } from "./f16.ts";
import { defineKernel, type Words, words } from "./kernel.ts";
import { nf4Decoder, WEIGHT } from "./nf4-decode.ts";
import { forRows } from "./tasks.ts";
import { accumulators, at, rowAt, setAll, sumLanes, summer } from "./vectors.ts";

const ROWS = words("x", "bias", "y", "m", "n", "k", "rows");

/** The loops over rows of w and of x; `dot` emits the dot product of row `row` of w with the row of x at `xRow`. */
function emitRows(
  f: FunctionBuilder,
  task: Local<"i32">,
  { x, bias, y, m, n, k, rows }: Words<keyof typeof ROWS>,
  dot: (row: Local<"i32">, xRow: Local<"i32">) => Expr<"f32">,
): void {
  forRows(f, task, { rows, n }, (row) => {
    const start = f.f32(0);
    f.if(bias, () => f.set(start, f32.load(at(bias, row))));
    const to = f.i32(at(y, row));
    f.for(0, m, 1, (index) => {
      const sum = dot(row, f.i32(rowAt(x, index, k)));
      f.do(f32.store(to, f32.add(start, sum)));
      f.set(to, at(to, n));
    });
  });
}

const matmulFew = (source: Source) =>
  defineKernel({ w: "i32", ...ROWS }, (f, { w, ...p }, { task }) => {
    const bytes = bytesOf(source);
    const load4 = loader(f, source);
    const sumOf = summer(f);
    emitRows(f, task, p, (row, xRow) =>
      sumOf(p.k, [[at(w, i32.mul(row, p.k), bytes), bytes], xRow], (sum, [w, x]) =>
        f.madd(load4(w.pointer, w.offset), x.load(), sum),
      ),
    );
  });

export const matmulFewF32 = matmulFew("f32");
export const matmulFewF16 = matmulFew("f16");

/** NF4: levels times x are summed by block of the weight, then multiplied by the block's scale. */
export const matmulFewNf4 = defineKernel({ ...WEIGHT, ...ROWS } as const, (f, p, { task }) => {
  const sums = accumulators(f);
  const [blockSum, total] = [f.f32(), f.v128()];
  const all = f.f32();
  const factor = f.f32();
  const x = f.i32();
  const decode = nf4Decoder(f, p, {
    begin: (scale) => {
      f.set(factor, scale);
      f.set(blockSum, 0);
      setAll(f, sums, f32x4.splat(0));
    },
    sixteen(levels) {
      for (const [i, four] of levels.entries()) {
        f.set(sums[i], f.madd(four, v128.load(x, 16 * i), sums[i]));
      }
      f.set(x, i32.add(x, 64));
    },
    one(level) {
      f.set(blockSum, f32.add(blockSum, f32.mul(level, f32.load(x))));
      f.set(x, i32.add(x, 4));
    },
    end() {
      const four = f32x4.add(f32x4.add(sums[0], sums[1]), f32x4.add(sums[2], sums[3]));
      f.set(total, f.madd(four, f32x4.splat(factor), total));
      f.set(all, f32.add(all, f32.mul(blockSum, factor)));
    },
  });
  emitRows(f, task, p, (row, xRow) => {
    f.set(x, xRow);
    f.set(total, f32x4.splat(0));
    f.set(all, 0);
    decode(i32.mul(row, p.k), p.k);
    return f32.add(all, sumLanes(f, [total]));
  });
});
