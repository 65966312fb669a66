/** Kernels before attention: left panels of heads, and what backward passes need of each query. */
import { f32, f32x4, i32, v128 } from "../assembler/instructions.ts";
import { at, emitScale, HeadRows, panelsOf, pitchOf } from "./attention-panel.ts";
import { defineKernel, words } from "./kernel.ts";
import { storeWords } from "./library.ts";
import { PACK_HEADS } from "./tasks.ts";
import { accumulators, forVectors, sumLanes } from "./vectors.ts";

const HEADS = words("src", "dst", "s", "g", "group", "d", "parts");

/** Rows of a key head times `scale` as left panels, [panel][d][panelRows]; a task is PACK_HEADS rows of one head. */
export const packHeadRows = defineKernel(
  { ...HEADS, scale: "f32" } as const,
  (f, p, { task, library: { packHeads, panelRows } }) => {
    const head = f.i32(i32.divU(task, p.parts));
    const { base, position, group } = new HeadRows(f, p, head);
    const rows = f.i32(i32.mul(p.s, p.group));
    const [first, from] = [f.i32(), f.i32(i32.mul(i32.remU(task, p.parts), PACK_HEADS))];
    const end = f.i32(i32.min(rows, f.i32(i32.add(from, PACK_HEADS))));
    const headBytes = i32.mul(i32.mul(panelsOf(rows, panelRows), 4 * panelRows), p.d);
    const target = f.i32(at(p.dst, head, headBytes));
    f.for(first, from, end, panelRows, () => {
      const to = f.i32(at(target, first, i32.mul(p.d, 4)));
      f.call(packHeads.left, base, position, group, first, rows, p.d, to);
      emitScale(f, to, i32.mul(p.d, panelRows), p.scale);
    });
  },
);

/** Columns of a key head as left panels, [panel][row][panelRows]; a task is PACK_HEADS rows of one head. */
export const packHeadColumns = defineKernel(HEADS, (f, p, { task, library: { panelRows } }) => {
  const head = f.i32(i32.divU(task, p.parts));
  const source = new HeadRows(f, p, head);
  const rows = f.i32(i32.mul(p.s, p.group));
  const [row, from] = [f.i32(), f.i32(i32.mul(i32.remU(task, p.parts), PACK_HEADS))];
  const end = f.i32(i32.min(rows, f.i32(i32.add(from, PACK_HEADS))));
  const panelBytes = f.i32(i32.mul(pitchOf(rows), 4 * panelRows));
  const panels = panelsOf(p.d, panelRows);
  const target = f.i32(at(p.dst, i32.mul(head, panels), panelBytes));
  const [column, to, last] = [f.i32(), f.i32(), f.i32()];
  f.for(row, from, end, 1, () => {
    f.set(column, source.at(row));
    f.set(last, i32.add(column, i32.mul(p.d, 4)));
    f.set(to, at(target, row, 4 * panelRows));
    f.while(i32.ltU(column, last), () => {
      for (let first = 0; first < panelRows; first += 4) {
        storeWords(f, to, v128.load(column, 4 * first), panelRows - first, 4 * first);
      }
      f.set(column, i32.add(column, 4 * panelRows));
      f.set(to, i32.add(to, panelBytes));
    });
  });
});

/** What backward passes need of each query: max, logSum and dy · y, [3][heads][s · group]. A task is PACK_HEADS rows of one head. */
export const queryShifts = defineKernel(
  words("dy", "y", "lse", "shifts", "heads", "s", "g", "group", "d", "parts"),
  (f, { dy, y, lse, shifts, heads, parts, ...p }, { task }) => {
    const head = f.i32(i32.divU(task, parts));
    const source = new HeadRows(f, { ...p, src: dy }, head);
    const pairs = new HeadRows(f, { ...p, src: lse, d: f.i32(2) }, head);
    const rows = f.i32(i32.mul(p.s, p.group));
    const [row, from] = [f.i32(), f.i32(i32.mul(i32.remU(task, parts), PACK_HEADS))];
    const end = f.i32(i32.min(rows, f.i32(i32.add(from, PACK_HEADS))));
    const [dyAt, yAt, pair, out] = Array.from({ length: 4 }, () => f.i32());
    const sums = accumulators(f, 2);
    const plane = f.i32(i32.mul(i32.mul(heads, rows), 4));
    f.for(row, from, end, 1, () => {
      f.set(dyAt, source.at(row));
      f.set(yAt, i32.add(y, i32.sub(dyAt, dy)));
      f.set(pair, pairs.at(row));
      f.set(out, at(shifts, i32.add(i32.mul(head, rows), row), 4));
      for (const sum of sums) f.set(sum, f32x4.splat(0));
      forVectors(
        f,
        p.d,
        [dyAt, yAt],
        ({ load, round }) => f.set(sums[round], f.madd(load(dyAt), load(yAt), sums[round])),
        2,
      );
      f.do(
        f32.store(out, f32.load(pair)),
        f32.store(i32.add(out, plane), f32.load(pair, 4)),
        f32.store(i32.add(out, i32.mul(plane, 2)), sumLanes(f, sums)),
      );
    });
  },
);
