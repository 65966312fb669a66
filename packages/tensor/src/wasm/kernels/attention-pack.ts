/** Kernels before attention: panels of heads, what is seen, and what backward passes need of each query. */
import { f32, f32x4, i32 } from "../assembler/instructions.ts";
import { at, emitHead, panelsOf } from "./attention-block.ts";
import { defineKernel } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { PACK_STEPS } from "./tasks.ts";
import { accumulators, forVectors, sumLanes } from "./vectors.ts";

/** Panels of a head's rows, as columns of a product; a task is PACK_STEPS rows of one head. */
export const packHeadRows = defineKernel(
  { src: "i32", dst: "i32", heads: "i32", s: "i32", d: "i32", parts: "i32" },
  (f, { src, dst, heads, s, d, parts }, { task, library: { packRows } }) => {
    const { base, row, head } = emitHead(f, { src, heads, s, d }, i32.divU(task, parts));
    const [first, from] = [f.i32(), f.i32()];
    f.set(from, i32.mul(i32.remU(task, parts), PACK_STEPS));
    const end = f.i32(i32.min(s, i32.add(from, PACK_STEPS)));
    const target = f.i32(at(dst, head, i32.mul(i32.mul(panelsOf(s, PANEL_COLS), PANEL_COL_BYTES), d)));
    f.for(first, from, end, PANEL_COLS, () => {
      const rows = i32.min(f.i32(i32.sub(s, first)), PANEL_COLS);
      f.call(packRows.right.f32, at(base, first, row), row, rows, d, at(target, first, i32.mul(d, 4)));
    });
  },
);

/** Panels of a head's columns, [panel][s][8]; a task is PACK_STEPS rows of one head. */
export const packHeadColumns = defineKernel(
  { src: "i32", dst: "i32", heads: "i32", s: "i32", d: "i32", parts: "i32" },
  (f, { src, dst, heads, s, d, parts }, { task, library: { packColumns } }) => {
    const { base, row, head } = emitHead(f, { src, heads, s, d }, i32.divU(task, parts));
    const first = f.i32(i32.mul(i32.remU(task, parts), PACK_STEPS));
    const rows = f.i32(i32.min(f.i32(i32.sub(s, first)), PACK_STEPS));
    const panels = f.i32(panelsOf(d, PANEL_COLS));
    const target = f.i32(at(dst, i32.mul(i32.mul(head, panels), s), PANEL_COL_BYTES));
    const panel = f.i32();
    f.for(panel, 0, panels, 1, () => {
      const from = i32.add(at(base, first, row), i32.mul(panel, PANEL_COL_BYTES));
      f.call(
        packColumns.right.f32,
        from,
        row,
        rows,
        at(target, i32.add(i32.mul(panel, s), first), PANEL_COL_BYTES),
      );
    });
  },
);

/** Bits of what is seen: a word per key, all of them without a mask. */
export const visibleBits = defineKernel({ mask: "i32", bits: "i32", n: "i32" }, (f, { mask, bits, n }) => {
  const i = f.i32();
  f.for(i, 0, n, 1, () => {
    const seen = f.i32(1);
    f.if(mask, () => f.set(seen, i32.load8U(i32.add(mask, i))));
    f.do(i32.store(at(bits, i, 4), i32.sub(0, i32.ne(seen, 0))));
  });
});

/** What backward passes need of each query, heads first: max, logSum and dy · y, [3][B·H][T]. A task is one head. */
export const queryShifts = defineKernel(
  { dy: "i32", y: "i32", lse: "i32", shifts: "i32", heads: "i32", t: "i32", d: "i32", all: "i32" },
  (f, { dy, y, lse, shifts, heads, t, d, all }, { task }) => {
    const { base, row } = emitHead(f, { src: dy, heads, s: t, d }, task);
    const [dyAt, yAt, query, out, pair] = Array.from({ length: 5 }, () => f.i32());
    const sums = accumulators(f, 2);
    const plane = f.i32(i32.mul(i32.mul(all, t), 4));
    f.set(out, at(shifts, i32.mul(task, t), 4));
    f.for(query, 0, t, 1, () => {
      f.set(dyAt, at(base, query, row));
      f.set(yAt, i32.add(y, i32.sub(dyAt, dy)));
      // Row (b, t, h) of lse has two words.
      f.set(pair, i32.divU(i32.sub(dyAt, dy), i32.mul(d, 4)));
      f.set(pair, at(lse, pair, 8));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        d,
        [dyAt, yAt],
        ({ load, round }) => f.set(sums[round], f.madd(load(dyAt), load(yAt), sums[round])),
        2,
      );
      f.do(
        f32.store(out, f32.load(pair)),
        f32.store(i32.add(out, plane), f32.load(pair, 4)),
        f32.store(i32.add(out, i32.mul(plane, 2)), sumLanes(f, sums)),
      );
      f.set(out, i32.add(out, 4));
    });
  },
);
