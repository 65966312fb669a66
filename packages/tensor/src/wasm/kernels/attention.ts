/**
 * The forward pass of attention (FlashAttention's online softmax). A panel is eight queries that share a key head; keys and
 * values stream past it in windows, so that no T x S matrix exists.
 *
 *     for panel of the task: pack its queries; max = HIDDEN, total = 0, sums[d][8] = 0
 *     for window of STREAM keys, for panel of the task:
 *       scores[key][8] = keys · queriesᵀ                      (matmul tiles)
 *       max' = max(max, visible scores), by column
 *       if max' > max: total, sums *= e^(max - max')
 *       scores = visible ? e^(scores - max') : 0,  total += Σ scores
 *       sums[d][8] += valuesᵀ · scores                       (matmul tiles)
 *     y = (sums / total)ᵀ,  lse = (max, log total)
 *
 * Scores are stored with a query in each column. That is the layout of a right operand, so the second matmul needs no packing,
 * and maxima and sums of queries are found lane by lane.
 */
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import {
  COLUMN_HALVES,
  type Eight,
  EXTENTS,
  eight,
  emitPanelTask,
  HeadRows,
  type Panel,
  PLACES,
  WORDS,
} from "./attention-panel.ts";
import { HIDDEN, queryVisibility, type Visibility, type Window } from "./attention-visibility.ts";
import { defineKernel, type Words, words } from "./kernel.ts";
import { PANEL_COL_BYTES } from "./library.ts";
import { attentionExpOf, logOf } from "./math.ts";
import { at, rowAt } from "./vectors.ts";

export const attention = defineKernel(
  { ...words("q", "keys", "values", "mask", "segments", "y", "lse"), ...EXTENTS, ...PLACES } as const,
  (f, p, frame) => {
    const { panel, head } = emitPanelTask(f, frame, p, "queries");
    const scores = panel.shared(p.scoresAt);
    const queries = new HeadRows(f, { ...p, src: p.q, s: p.t }, head);
    const [largest, totals] = [WORDS.largest, WORDS.totals];
    panel.each(() => {
      panel.pack(queries, panel.place(p.panelAt));
      panel.clear(panel.place(p.sumsAt));
      const scratch = panel.place(p.wordsAt);
      for (const half of COLUMN_HALVES) {
        f.do(v128.store(scratch, f32x4.splat(HIDDEN), largest + 16 * half));
        f.do(v128.store(scratch, f32x4.splat(0), totals + 16 * half));
      }
    });
    const visibility = queryVisibility(panel, p, head);
    const keys = f.i32(at(p.keys, head, panel.rowsBytes(p.s)));
    const columns = panel.columnsBytes(p.s);
    const values = f.i32(at(p.values, head, columns.head));
    const toWeights = softmaxColumns(panel, visibility);
    panel.stream(visibility, p.wordsAt, (window) => {
      const { start, count } = window;
      const [right, sums] = [panel.place(p.panelAt), panel.place(p.sumsAt)];
      panel.score(f.i32(rowAt(keys, start, p.d)), right, count, scores);
      toWeights(window, { scores, sums, scratch: panel.place(p.wordsAt) });
      panel.accumulate(f.i32(at(values, start, panel.stepBytes)), columns.panel, scores, count, sums);
    });
    const out = new HeadRows(f, { ...p, src: p.y, s: p.t }, head);
    const pairs = new HeadRows(f, { ...p, src: p.lse, s: p.t, d: f.i32(2) }, head);
    const [one, none] = [1, 0].map((value) => f.v128(f32x4.splat(value)));
    const log = logOf(f);
    panel.each(() => {
      const scratch = panel.place(p.wordsAt);
      const sumOf = eight((half) => f.v128(v128.load(scratch, totals + 16 * half)));
      const isAny = eight((half) => f.v128(f32x4.gt(sumOf[half], none)));
      const shares = eight((half) => f.v128(v128.and(f32x4.div(one, sumOf[half]), isAny[half])));
      panel.write(panel.place(p.sumsAt), shares, out, panel.shared(p.rowAt));
      f.if(p.lse, () => {
        for (const half of COLUMN_HALVES) {
          f.do(v128.store(scratch, v128.and(log(sumOf[half]), isAny[half]), totals + 16 * half));
        }
        panel.forRows((row, index) => {
          const [from, to] = [f.i32(at(scratch, row)), f.i32(pairs.at(index))];
          f.do(f32.store(to, f32.load(from, largest)), f32.store(to, f32.load(from, totals), 4));
        });
      });
    });
  },
);

/** Returns an emitter that turns a window's scores into weights relative to the largest score so far, and rescales `sums` to it. */
function softmaxColumns(
  { f, d }: Panel,
  visibility: Visibility,
): (window: Window, places: Words<"scores" | "sums" | "scratch">) => void {
  const exp = attentionExpOf(f);
  const hidden = f.v128(f32x4.splat(HIDDEN));
  const [before, largest, totals, shrinks] = Array.from({ length: 4 }, () => eight(() => f.v128()));
  const from = f.i32();
  return (window, { scores, sums, scratch }) => {
    for (const half of COLUMN_HALVES) {
      f.set(before[half], v128.load(scratch, WORDS.largest + 16 * half));
      f.set(largest[half], before[half]);
      f.set(totals[half], v128.load(scratch, WORDS.totals + 16 * half));
    }
    f.set(from, scores);
    visibility.each(window, [[from, PANEL_COL_BYTES]], (visible) => {
      for (const half of COLUMN_HALVES) {
        const score = v128.load(from, 16 * half);
        const counted = visible ? v128.bitselect(score, hidden, visible[half]) : score;
        f.set(largest[half], f32x4.pmax(largest[half], counted));
      }
    });
    f.if(isAnyGreater(largest, before), () => {
      for (const half of COLUMN_HALVES) {
        f.set(shrinks[half], exp(f32x4.sub(before[half], largest[half])));
        f.set(totals[half], f32x4.mul(totals[half], shrinks[half]));
      }
      f.set(from, sums);
      const end = f.i32(at(sums, d, PANEL_COL_BYTES));
      f.while(i32.ltU(from, end), () => {
        for (const half of COLUMN_HALVES) {
          f.do(v128.store(from, f32x4.mul(v128.load(from, 16 * half), shrinks[half]), 16 * half));
        }
        f.set(from, i32.add(from, PANEL_COL_BYTES));
      });
    });
    f.set(from, scores);
    visibility.each(window, [[from, PANEL_COL_BYTES]], (visible) => {
      for (const half of COLUMN_HALVES) {
        const weight = exp(f32x4.sub(v128.load(from, 16 * half), largest[half]));
        const counted = f.v128(visible ? v128.and(weight, visible[half]) : weight);
        f.do(v128.store(from, counted, 16 * half));
        f.set(totals[half], f32x4.add(totals[half], counted));
      }
    });
    for (const half of COLUMN_HALVES) {
      f.do(v128.store(scratch, largest[half], WORDS.largest + 16 * half));
      f.do(v128.store(scratch, totals[half], WORDS.totals + 16 * half));
    }
  };
}

const isAnyGreater = (a: Eight<V128>, b: Eight<V128>) =>
  v128.anyTrue(v128.or(f32x4.gt(a[0], b[0]), f32x4.gt(a[1], b[1])));
