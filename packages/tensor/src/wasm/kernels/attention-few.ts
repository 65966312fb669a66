/**
 * Attention of few queries, each by itself, over keys and values in place: packing those into panels would take longer than
 * reading them once for each query.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { HeadRows, PLACES } from "./attention-panel.ts";
import { emitMasks, HIDDEN } from "./attention-visibility.ts";
import { defineKernel, type Words, words } from "./kernel.ts";
import { attentionExpOf, logOf } from "./math.ts";
import { STREAM } from "./tasks.ts";
import { at, forVectors, sumLanes, summer } from "./vectors.ts";

/** Rows of values that are added at a time, so that the sums are loaded and stored once for that many rows. */
const ROWS_AT_ONCE = 4;

const SIZES = words("t", "s", "g", "group", "d", "offset");

/**
 * y and lse of one query of one head, which is a task, by the online softmax:
 *
 *     max = HIDDEN, total = 0, sums[d] = 0
 *     for window of STREAM keys up to the query's position:
 *       scores[j] = visible(j) ? scale · q·k[j] : HIDDEN,  max' = max(max, scores)
 *       shrink = e^(max - max'),  total *= shrink
 *       weights[j] = e^(scores[j] - max'),  total += Σ weights
 *       sums = shrink · sums + Σ_j weights[j] · v[j]
 *     y = sums / total,  lse = (max, log total)
 */
export const attentionFew = defineKernel(
  { ...words("q", "k", "v", "mask", "segments", "y", "lse"), ...SIZES, ...PLACES, scale: "f32" } as const,
  (f, p, frame) => {
    const { task, scratch } = frame;
    const heads = f.i32(i32.mul(p.g, p.group));
    const batch = f.i32(i32.divU(task, i32.mul(p.t, heads)));
    const position = f.i32(i32.add(i32.remU(i32.divU(task, heads), p.t), p.offset));
    const head = f.i32(i32.add(i32.mul(batch, p.g), i32.divU(i32.remU(task, heads), p.group)));
    const [scores, sums] = [f.i32(i32.add(scratch, p.scoresAt)), f.i32(i32.add(scratch, p.sumsAt))];
    const rowBytes = f.i32(i32.mul(p.d, 4));
    const query = f.i32(at(p.q, task, rowBytes));
    const masks = emitMasks({ f, frame }, p, batch);
    const own = f.i32(i32.load(masks.segmentAt(position)));
    const [keys, values] = [p.k, p.v].map((src) => new HeadRows(f, { ...p, src, group: 1 }, head));
    const sumOf = summer(f);
    const exp = attentionExpOf(f);

    f.zeroBytes(sums, rowBytes);
    const [largest, before, score] = [f.f32(HIDDEN), f.f32(), f.f32()];
    const [totals, shrink, weights] = [f.v128(), f.v128(), f.v128()];
    const end = f.i32(i32.min(p.s, f.i32(i32.add(position, 1))));
    f.for(0, end, STREAM, (start) => {
      const count = f.i32(i32.min(f.i32(i32.sub(end, start)), STREAM));
      f.set(before, largest);
      const [row, key] = [f.i32(at(keys.base, start, keys.position)), f.i32(start)];
      const [to, last] = [f.i32(scores), f.i32(at(scores, count))];
      f.while(i32.ltU(to, last), () => {
        f.set(score, HIDDEN);
        const isVisible = i32.and(masks.unhidden(key), i32.eq(i32.load(masks.segmentAt(key)), own));
        f.if(isVisible, () => {
          const dot = sumOf(p.d, [query, row], (sum, [q, k]) => f.madd(q.load(), k.load(), sum));
          f.set(score, f32.mul(dot, p.scale));
          f.set(largest, f32.max(largest, score));
        });
        f.do(f32.store(to, score));
        f.set(row, i32.add(row, keys.position));
        f.set(to, i32.add(to, 4));
        f.set(key, i32.add(key, 1));
      });
      f.do(v128.store(last, f32x4.splat(HIDDEN))); // fills the last vector of weights: those of rows that do not exist are 0
      f.set(shrink, exp(f32x4.sub(f32x4.splat(before), f32x4.splat(largest))));
      f.set(totals, f32x4.mul(totals, shrink));
      f.set(to, scores);
      f.while(i32.ltU(to, last), () => {
        const found = f.v128(v128.load(to));
        const isVisible = f32x4.gt(found, f32x4.splat(HIDDEN));
        f.set(weights, v128.and(exp(f32x4.sub(found, f32x4.splat(largest))), isVisible));
        f.set(totals, f32x4.add(totals, weights));
        f.do(v128.store(to, weights));
        f.set(to, i32.add(to, 16));
      });
      f.set(row, at(values.base, start, values.position));
      emitAddRows(f, { sums, row, stride: values.position, weights: scores, last, d: p.d }, shrink);
    });

    const sum = f.f32(sumLanes(f, [totals]));
    const isAny = f.i32(f32.gt(sum, 0));
    const share = f.v128(f32x4.splat(f32.select(isAny, f32.div(1, sum), 0)));
    forVectors(f, p.d, [at(p.y, task, rowBytes), sums], ([y, sum]) => y.store(f32x4.mul(sum.load(), share)));
    f.if(p.lse, () => {
      const pair = f.i32(at(p.lse, task, 8));
      const log = f32x4.lane(logOf(f)(f32x4.splat(sum)), 0);
      f.do(f32.store(pair, largest), f32.store(pair, f32.select(isAny, log, 0), 4));
    });
  },
);

/** sums = shrink · sums + Σ weight · row over the weights up to address `last`; zeros follow them. */
function emitAddRows(
  f: FunctionBuilder,
  { sums, row, stride, weights, last, d }: Words<"sums" | "row" | "stride" | "weights" | "last" | "d">,
  shrink: Local<"v128">,
): void {
  const [weight, factor] = [f.i32(weights), f.v128(shrink)];
  const count = i32.divU(i32.sub(last, weights), 4);
  const lastRow = f.i32(at(row, i32.sub(count, 1), stride));
  const four = Array.from({ length: ROWS_AT_ONCE }, () => ({ row: f.i32(), weight: f.v128() }));
  f.while(i32.ltU(weight, last), () => {
    for (const [i, one] of four.entries()) {
      f.set(one.row, i32.minU(f.i32(at(row, i, stride)), lastRow)); // never past the last row, where memory might hold NaN: 0 · NaN is NaN
      f.set(one.weight, v128.load32Splat(weight, 4 * i));
    }
    forVectors(f, d, [sums, ...four.map((one) => one.row)], ([sums, ...rows]) => {
      const sum = f.v128(f32x4.mul(sums.load(), factor));
      for (const [i, row] of rows.entries()) f.set(sum, f.madd(row.load(), four[i].weight, sum));
      sums.store(sum);
    });
    f.set(factor, f32x4.splat(1));
    f.set(row, at(row, ROWS_AT_ONCE, stride));
    f.set(weight, i32.add(weight, 4 * ROWS_AT_ONCE));
  });
}
