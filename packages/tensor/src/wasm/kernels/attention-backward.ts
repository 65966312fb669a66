/**
 * The gradients of attention, over the panels of the forward pass. Weights are recomputed from the scores and the saved lse.
 *
 *     dq, for a panel of queries:
 *       for window of keys:  scores = keys · queriesᵀ,  slopes = values · dyᵀ           (matmul tiles)
 *                            slopes = e^(scores - max - logSum) · (slopes - delta)      (d loss / d score)
 *                            sums[d][8] += keysᵀ · slopes                              (matmul tiles)
 *       dq = scale · sumsᵀ
 *     dk and dv, for a panel of keys:
 *       for window of queries: the same with queries and keys exchanged, and
 *                            dvSums += dyᵀ · weights,  dkSums += queriesᵀ · slopes
 *
 * `delta` is dy · y of a query (`queryShifts`).
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import {
  COLUMN_HALVES,
  EXTENTS,
  eight,
  emitPanelTask,
  emitScale,
  HeadRows,
  type Panel,
  PLACES,
} from "./attention-panel.ts";
import { keyVisibility, queryVisibility, type Window } from "./attention-visibility.ts";
import { defineKernel, type Words, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { attentionExpOf } from "./math.ts";
import { at } from "./vectors.ts";

/**
 * What a query contributes to a weight and its gradient. `isShared` has all bits set where logSum is above 0, that is where the
 * query attends to more than one key. If a single key has all the weight, dy · v - dy · y is 0 and its rounding error must not
 * become a gradient.
 */
type Shift = readonly [max: V128, logSum: V128, delta: V128, isShared: V128];

/** The address of the shifts of a key head's queries, and the bytes from one of the three values to the next. */
function shiftsOf(
  f: FunctionBuilder,
  { shifts, t, group, heads }: Words<"shifts" | "t" | "group" | "heads">,
  head: Local<"i32">,
): { base: Local<"i32">; plane: Local<"i32"> } {
  const rows = f.i32(i32.mul(t, group));
  const base = f.i32(at(shifts, i32.mul(head, rows)));
  return { base, plane: f.i32(i32.mul(i32.mul(heads, rows), 4)) };
}

/** Loads the shift at an address. */
const shiftAt = (
  f: FunctionBuilder,
  address: Local<"i32">,
  plane: Local<"i32">,
  load: (address: Expr<"i32">) => V128,
): Shift => {
  const [max, logSum, delta] = [0, 1, 2].map((i) => f.v128(load(i32.add(address, i32.mul(plane, i)))));
  return [max, logSum, delta, f.v128(f32x4.gt(logSum, v128.constant([0, 0, 0, 0])))];
};

/** Returns an emitter of the weight and of d loss / d score, from a score and dy · v. */
function slopesOf(f: FunctionBuilder) {
  const exp = attentionExpOf(f);
  return (score: V128, dyV: V128, [max, logSum, delta, isShared]: Shift, visible: V128 | undefined) => {
    const all = exp(f32x4.sub(f32x4.sub(score, max), logSum));
    const weight = f.v128(visible ? v128.and(all, visible) : all);
    return { weight, slope: v128.and(f32x4.mul(weight, f32x4.sub(dyV, delta)), isShared) };
  };
}

/**
 * The two matmuls of a window: the rows at `lefts` times the panel's two operands. `run` emits them and sets the pointers `from`
 * and `other` to their first rows.
 */
function matmulsOf(
  panel: Panel,
  p: Words<"panelAt" | "otherPanelAt" | "scoresAt" | "otherScoresAt">,
  lefts: readonly [Local<"i32">, Local<"i32">],
) {
  const { f, d } = panel;
  const [scores, slopes] = [panel.shared(p.scoresAt), panel.shared(p.otherScoresAt)];
  const [from, other] = [f.i32(), f.i32()];
  const run = ({ start, count }: Window) => {
    const rowsAt = f.i32(i32.mul(i32.mul(start, d), 4));
    panel.score(f.i32(i32.add(lefts[0], rowsAt)), panel.place(p.panelAt), count, scores);
    panel.score(f.i32(i32.add(lefts[1], rowsAt)), panel.place(p.otherPanelAt), count, slopes);
    f.set(from, scores);
    f.set(other, slopes);
  };
  const pointers = [from, other].map((pointer) => [pointer, PANEL_COL_BYTES] as const);
  return { scores, slopes, from, other, pointers, run };
}

/** dq; a task is one or more panels of queries of one key head. `keyRows` are already multiplied by scale. */
export const attentionBackwardQ = defineKernel(
  {
    ...words("dy", "q", "keyRows", "keyColumns", "valueRows", "mask", "segments"),
    ...words("shifts", "heads", "dq"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const { panel, head } = emitPanelTask(f, frame, p, "queries");
    const rowsOf = (src: Local<"i32">) => new HeadRows(f, { ...p, src, s: p.t }, head);
    const [queries, outputs] = [rowsOf(p.q), rowsOf(p.dy)];
    panel.each(() => {
      panel.pack(queries, panel.place(p.panelAt));
      panel.pack(outputs, panel.place(p.otherPanelAt));
      panel.clear(panel.place(p.sumsAt));
    });
    const visibility = queryVisibility(panel, p, head);
    const rowsBytes = panel.rowsBytes(p.s);
    const [keys, values] = [p.keyRows, p.valueRows].map((base) => f.i32(at(base, head, rowsBytes)));
    const bytes = panel.columnsBytes(p.s);
    const columns = f.i32(at(p.keyColumns, head, bytes.head));
    const { base, plane } = shiftsOf(f, p, head);
    const slopeOf = slopesOf(f);
    const { scores, from, other, pointers, run } = matmulsOf(panel, p, [keys, values]);
    panel.stream(visibility, p.wordsAt, (window) => {
      const { start, count } = window;
      run(window);
      const shift = f.i32(at(base, panel.first));
      const shifts = eight((half) => shiftAt(f, shift, plane, (address) => v128.load(address, 16 * half)));
      visibility.each(window, pointers, (visible) => {
        for (const half of COLUMN_HALVES) {
          const [score, dyV] = [v128.load(from, 16 * half), v128.load(other, 16 * half)];
          const { slope } = slopeOf(score, dyV, shifts[half], visible?.[half]);
          f.do(v128.store(from, slope, 16 * half));
        }
      });
      const columnsAt = f.i32(at(columns, start, panel.stepBytes));
      panel.accumulate(columnsAt, bytes.panel, scores, count, panel.place(p.sumsAt));
    });
    const factor = f.v128(f32x4.splat(p.scale));
    const out = rowsOf(p.dq);
    panel.each(() => panel.write(panel.place(p.sumsAt), [factor, factor], out, panel.shared(p.rowAt)));
  },
);

/** dk and dv; a task is one or more panels of keys, past which the queries of all heads of the group stream. */
export const attentionBackwardKV = defineKernel(
  {
    ...words("k", "v", "queryRows", "queryColumns", "dyRows", "dyColumns"),
    ...words("mask", "segments", "shifts", "heads", "dk", "dv"),
    ...EXTENTS,
    ...PLACES,
  } as const,
  (f, p, frame) => {
    const { panel, head } = emitPanelTask(f, frame, p, "keys");
    const rowsOf = (src: Local<"i32">) => new HeadRows(f, { ...p, src, group: 1 }, head);
    const [keys, values] = [rowsOf(p.k), rowsOf(p.v)];
    panel.each(() => {
      const right = panel.place(p.panelAt);
      panel.pack(keys, right);
      emitScale(f, right, i32.mul(p.d, PANEL_COLS), p.scale); // the other passes scale keys too: scores agree to the bit
      panel.pack(values, panel.place(p.otherPanelAt));
      for (const sums of [p.sumsAt, p.otherSumsAt]) panel.clear(panel.place(sums));
    });
    const visibility = keyVisibility(panel, p, head);
    const queries = f.i32(i32.mul(p.t, p.group));
    const [rowsBytes, bytes] = [panel.rowsBytes(queries), panel.columnsBytes(queries)];
    const [queryRows, dyRows] = [p.queryRows, p.dyRows].map((base) => f.i32(at(base, head, rowsBytes)));
    const [queryColumns, dyColumns] = [p.queryColumns, p.dyColumns].map((base) =>
      f.i32(at(base, head, bytes.head)),
    );
    const { base, plane } = shiftsOf(f, p, head);
    const slopeOf = slopesOf(f);
    const { scores, slopes, from, other, pointers, run } = matmulsOf(panel, p, [queryRows, dyRows]);
    const shift = f.i32();
    panel.stream(visibility, p.wordsAt, (window) => {
      const { start, count } = window;
      run(window);
      f.set(shift, at(base, start));
      visibility.each(window, [...pointers, [shift, 4]], (visible) => {
        const shifts = shiftAt(f, shift, plane, v128.load32Splat);
        for (const half of COLUMN_HALVES) {
          const [score, dyV] = [v128.load(from, 16 * half), v128.load(other, 16 * half)];
          const to = slopeOf(score, dyV, shifts, visible?.[half]);
          f.do(v128.store(other, to.slope, 16 * half), v128.store(from, to.weight, 16 * half));
        }
      });
      const columnsAt = f.i32(i32.mul(start, panel.stepBytes));
      const [dkSums, dvSums] = [panel.place(p.sumsAt), panel.place(p.otherSumsAt)];
      panel.accumulate(f.i32(i32.add(dyColumns, columnsAt)), bytes.panel, scores, count, dvSums);
      panel.accumulate(f.i32(i32.add(queryColumns, columnsAt)), bytes.panel, slopes, count, dkSums);
    });
    const [factor, one] = [f.v128(f32x4.splat(p.scale)), f.v128(f32x4.splat(1))];
    const [dk, dv, discard] = [rowsOf(p.dk), rowsOf(p.dv), panel.shared(p.rowAt)];
    panel.each(() => {
      panel.write(panel.place(p.sumsAt), [factor, factor], dk, discard);
      panel.write(panel.place(p.otherSumsAt), [one, one], dv, discard);
    });
  },
);
