/**
 * Streaming attention: panels of eight queries, past which keys stream. No T x S matrix exists; a panel's scores stand in the
 * thread's scratch with a query in each column, as the next product takes them: the largest and the sum of a query's scores
 * are found lane by lane, and nothing is packed again.
 */

import type { Local } from "../assembler/function.ts";
import { f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import {
  at,
  type Eight,
  EXTENTS,
  eight,
  emitPanelTask,
  HALVES,
  HeadRows,
  type Panel,
  PLACES,
} from "./attention-panel.ts";
import { emitQuerySight, type Sight, type Window } from "./attention-sight.ts";
import { defineKernel, words } from "./kernel.ts";
import { PANEL_COL_BYTES } from "./library.ts";
import { attentionExpOf, logOf } from "./math.ts";

/** The score of what is not seen: finite, and no other score reaches it. */
const HIDDEN = -3.0e38;

export const attention = defineKernel(
  { ...words("q", "keys", "values", "mask", "segments", "y", "lse"), ...EXTENTS, ...PLACES } as const,
  (f, p, frame) => {
    const { panel, head } = emitPanelTask(f, frame, p, "queries");
    const [right, scores, sums] = [p.panelAt, p.scoresAt, p.sumsAt].map((offset) => panel.place(offset));
    const [rows, scratch] = [panel.place(p.rowAt), panel.place(p.wordsAt)];
    const queries = new HeadRows(f, { ...p, src: p.q, s: p.t }, head);
    panel.pack(queries, right);
    panel.clear(sums);
    const sight = emitQuerySight(panel, p, head, scratch);
    const keys = f.i32(at(p.keys, head, panel.rowsBytes(p.s)));
    const columns = panel.columnsBytes(p.s);
    const values = f.i32(at(p.values, head, columns.head));
    const largest = eight(() => f.v128(f32x4.splat(HIDDEN)));
    const totals = eight(() => f.v128(f32x4.splat(0)));
    const toWeights = softmaxColumns(panel, sight, { largest, totals });
    panel.stream(sight, (window) => {
      const { start, count } = window;
      panel.score(f.i32(at(keys, start, i32.mul(p.d, 4))), right, count, scores);
      toWeights(window, scores, sums);
      panel.gather(f.i32(at(values, start, panel.stepBytes)), columns.panel, scores, count, sums);
    });
    const one = f.v128(f32x4.splat(1));
    const shares = eight((half) => {
      const isAny = f32x4.gt(totals[half], f.v128(f32x4.splat(0)));
      return f.v128(v128.and(f32x4.div(one, totals[half]), isAny));
    });
    panel.write(sums, shares, new HeadRows(f, { ...p, src: p.y, s: p.t }, head), rows);
    f.if(p.lse, () => {
      const log = logOf(f);
      for (const half of HALVES) {
        const logSum = v128.and(log(totals[half]), f32x4.gt(totals[half], f.v128(f32x4.splat(0))));
        f.do(v128.store(scratch, largest[half], 16 * half));
        f.do(v128.store(scratch, logSum, PANEL_COL_BYTES + 16 * half));
      }
      const pairs = new HeadRows(f, { ...p, src: p.lse, s: p.t, d: f.i32(2) }, head);
      panel.forRows((row, index) => {
        const [from, to] = [f.i32(at(scratch, row, 4)), f.i32(pairs.at(index))];
        f.do(f32.store(to, f32.load(from)), f32.store(to, f32.load(from, PANEL_COL_BYTES), 4));
      });
    });
  },
);

/** Code that turns scores to weights relative to the largest so far; what was summed before is scaled to that. */
function softmaxColumns(
  { f, d }: Panel,
  sight: Sight,
  { largest, totals }: Readonly<Record<"largest" | "totals", Eight<Local<"v128">>>>,
): (window: Window, scores: Local<"i32">, sums: Local<"i32">) => void {
  const exp = attentionExpOf(f);
  const hidden = f.v128(f32x4.splat(HIDDEN));
  const before = eight(() => f.v128());
  const from = f.i32();
  const shrinks = eight(() => f.v128());
  return (window, scores, sums) => {
    for (const half of HALVES) f.set(before[half], largest[half]);
    f.set(from, scores);
    sight.each(window, [[from, PANEL_COL_BYTES]], (seen) => {
      for (const half of HALVES) {
        const score = v128.load(from, 16 * half);
        const visible = seen ? v128.bitselect(score, hidden, seen[half]) : score;
        f.set(largest[half], f32x4.pmax(largest[half], visible));
      }
    });
    f.if(isAnyGreater(largest, before), () => {
      for (const half of HALVES) {
        f.set(shrinks[half], exp(f32x4.sub(before[half], largest[half])));
        f.set(totals[half], f32x4.mul(totals[half], shrinks[half]));
      }
      f.set(from, sums);
      const end = f.i32(at(sums, d, PANEL_COL_BYTES));
      f.while(i32.ltU(from, end), () => {
        for (const half of HALVES) {
          f.do(v128.store(from, f32x4.mul(v128.load(from, 16 * half), shrinks[half]), 16 * half));
        }
        f.set(from, i32.add(from, PANEL_COL_BYTES));
      });
    });
    f.set(from, scores);
    sight.each(window, [[from, PANEL_COL_BYTES]], (seen) => {
      for (const half of HALVES) {
        const weight = exp(f32x4.sub(v128.load(from, 16 * half), largest[half]));
        const visible = f.v128(seen ? v128.and(weight, seen[half]) : weight);
        f.do(v128.store(from, visible, 16 * half));
        f.set(totals[half], f32x4.add(totals[half], visible));
      }
    });
  };
}

const isAnyGreater = (a: Eight<V128>, b: Eight<V128>) =>
  v128.anyTrue(v128.or(f32x4.gt(a[0], b[0]), f32x4.gt(a[1], b[1])));
