/** Cross-entropy over rows of logits: the loss of each row, their mean, and gradients. */
import { f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf, logOf } from "./math.ts";
import { forRows } from "./tasks.ts";
import { at, type Body, forVectors, maximizer, rowAt, splat, summer } from "./vectors.ts";

/** scored = how many targets are not `ignoreIndex`, at least 1, as a float. */
export const countScored = defineKernel(
  words("targets", "n", "ignoreIndex", "scored"),
  (f, { targets, n, ignoreIndex, scored }) => {
    const count = f.i32();
    f.for(0, n, 1, (i) => f.set(count, i32.add(count, i32.ne(i32.load(at(targets, i)), ignoreIndex))));
    f.do(f32.store(scored, f32.convert(i32.select(count, count, 1))));
  },
);

/** loss = Σ nll / scored. */
export const meanLoss = defineKernel(words("nll", "n", "scored", "loss"), (f, { nll, n, scored, loss }) => {
  const sum = f.f32();
  f.for(0, n, 1, (i) => f.set(sum, f32.add(sum, f32.load(at(nll, i)))));
  f.do(f32.store(loss, f32.div(sum, f32.load(scored))));
});

/**
 * Per row: max, logSum = log Σ e^(logit - max), and the loss nll under the smoothed target, which is 0 for an ignored row. Row 0
 * of logits is row `firstRow` of targets and results. A target that is no class makes nll NaN. A task is `rows` rows.
 *
 *     nll = (1 - smoothing) · (max - logit[target]) + smoothing · mean(max - logits) + logSum
 */
export const rowLosses = defineKernel(
  {
    ...words("logits", "targets", "max", "logSum", "nll"),
    n: "i32",
    v: "i32",
    firstRow: "i32",
    ignoreIndex: "i32",
    smoothing: "f32",
    rows: "i32",
  } as const,
  (f, { logits, targets, max, logSum, nll, n, v, firstRow, ignoreIndex, smoothing, rows }, { task }) => {
    const [largestOf, sumOf, gapSumOf] = [maximizer(f, 2), summer(f, 2), summer(f, 1)];
    const [exp, log] = [expOf(f), logOf(f)];
    const shift = f.v128();
    forRows(f, task, { rows, n }, (row) => {
      const start = f.i32(rowAt(logits, row, v));
      f.set(shift, v128.load32Splat(start));
      const largest = f.f32(largestOf(v, [start], ([x]) => x.load(), shift));
      f.set(shift, f32x4.splat(largest));
      const sum = sumOf(v, [start], (sum, [x]) => f32x4.add(sum, exp(f32x4.sub(x.load(), shift))));
      const total = f.f32(f32x4.lane(log(f32x4.splat(sum)), 0));
      const word = f.i32(i32.mul(i32.add(row, firstRow), 4));
      const target = f.i32(i32.load(i32.add(targets, word)));
      f.do(f32.store(i32.add(max, word), largest), f32.store(i32.add(logSum, word), total));
      f.if(
        i32.eq(target, ignoreIndex),
        () => f.do(f32.store(i32.add(nll, word), 0)),
        () => {
          const chosen = f.f32(Number.NaN);
          f.if(i32.ltU(target, v), () => f.set(chosen, f32.load(at(start, target))));
          const loss = f.f32(f32.mul(f32.sub(1, smoothing), f32.sub(largest, chosen)));
          f.if(f32.gt(smoothing, 0), () => {
            const below = gapSumOf(v, [start], (sum, [x]) => f32x4.add(sum, f32x4.sub(shift, x.load())));
            const mean = f32.div(below, f32.convert(v));
            f.set(loss, f32.add(loss, f32.mul(smoothing, mean)));
          });
          f.do(f32.store(i32.add(nll, word), f32.add(loss, total)));
        },
      );
    });
  },
);

/**
 * dlogits = (softmax - smoothed target) · dloss / scored, 0 for ignored rows, and NaN where the target is no class; dlogits may
 * overwrite logits. An address dloss of 0 means 1. A task is `rows` rows.
 */
export const logitGradients = defineKernel(
  {
    ...words("logits", "dlogits", "targets", "max", "logSum", "dloss"),
    scored: "i32",
    n: "i32",
    v: "i32",
    firstRow: "i32",
    ignoreIndex: "i32",
    smoothing: "f32",
    ...words("rows"),
  } as const,
  (f, p, { task }) => {
    const factor = f.f32(f32.div(1, f32.load(p.scored)));
    f.if(p.dloss, () => f.set(factor, f32.mul(factor, f32.load(p.dloss))));
    const all = f.v128();
    const share = splat(f, f32.mul(-1, f32.div(p.smoothing, f32.convert(p.v))));
    const [max, logSum] = [f.v128(), f.v128()];
    const exp = expOf(f);
    forRows(f, task, { rows: p.rows, n: p.n }, (row) => {
      const offset = f.i32(i32.mul(i32.mul(row, p.v), 4));
      const start = f.i32(i32.add(p.dlogits, offset));
      const word = f.i32(i32.mul(i32.add(row, p.firstRow), 4));
      const target = f.i32(i32.load(i32.add(p.targets, word)));
      f.if(
        i32.eq(target, p.ignoreIndex),
        () => f.zeroBytes(start, i32.mul(p.v, 4)),
        () => {
          const isClass = i32.ltU(target, p.v);
          f.set(all, f32x4.splat(f32.select(isClass, factor, Number.NaN)));
          f.set(max, v128.load32Splat(i32.add(p.max, word)));
          f.set(logSum, v128.load32Splat(i32.add(p.logSum, word)));
          const derive: Body = ([logits, dlogits]) => {
            const value = exp(f32x4.sub(f32x4.sub(logits.load(), max), logSum));
            dlogits.store(f32x4.mul(f32x4.add(value, share), all));
          };
          forVectors(f, p.v, [i32.add(p.logits, offset), start], derive, 2);
          const chosen = f.i32(at(start, target));
          const weight = f32.mul(f32.sub(1, p.smoothing), factor);
          f.if(isClass, () => f.do(f32.store(chosen, f32.sub(f32.load(chosen), weight))));
        },
      );
    });
  },
);
