/** Kernels that run before those of attention: packing of the streaming operands, and per-query values for the gradients. */
import type { Local } from "../assembler/function.ts";
import { f32, i32, v128 } from "../assembler/instructions.ts";
import { emitScale, HeadRows, panelsOf, pitchOf } from "./attention-panel.ts";
import { defineKernel, words } from "./kernel.ts";
import { storeWords } from "./library.ts";
import { PACK_HEADS } from "./tasks.ts";
import { at, rowAt, summer } from "./vectors.ts";

const OPERANDS = words("first", "firstRows", "firstColumns", "second", "secondRows", "secondColumns");

/**
 * Packs two operands by key head as left operands of matmuls, each where an address is given: its rows as
 * [row / panelRows][d][panelRows], and its transpose ("columns") as [d / panelRows][row][panelRows]. Rows of the first operand
 * are multiplied by `scale`. A task is PACK_HEADS rows of one head of one operand: tasks from `each` on are the second one's.
 */
export const packHeads = defineKernel(
  { ...OPERANDS, ...words("s", "g", "group", "d", "parts", "each"), scale: "f32" } as const,
  (f, p, { task, library: { packHeads, panelRows } }) => {
    const isSecond = f.i32(i32.geS(task, p.each));
    const chosen = (first: Local<"i32">, second: Local<"i32">) => f.i32(i32.select(isSecond, second, first));
    const index = f.i32(i32.select(isSecond, i32.sub(task, p.each), task));
    const head = f.i32(i32.divU(index, p.parts));
    const source = new HeadRows(f, { ...p, src: chosen(p.first, p.second) }, head);
    const rows = f.i32(i32.mul(p.s, p.group));
    const from = f.i32(i32.mul(i32.remU(index, p.parts), PACK_HEADS));
    const end = f.i32(i32.min(rows, f.i32(i32.add(from, PACK_HEADS))));

    const asRows = chosen(p.firstRows, p.secondRows);
    f.if(asRows, () => {
      const bytes = i32.mul(i32.mul(panelsOf(rows, panelRows), 4 * panelRows), p.d);
      const target = f.i32(at(asRows, head, bytes));
      f.for(from, end, panelRows, (row) => {
        const to = f.i32(rowAt(target, row, p.d));
        f.call(packHeads.left, source.base, source.position, source.group, row, rows, p.d, to);
        f.if(i32.eqz(isSecond), () => emitScale(f, to, i32.mul(p.d, panelRows), p.scale));
      });
    });

    const asColumns = chosen(p.firstColumns, p.secondColumns);
    f.if(asColumns, () => {
      const panelBytes = f.i32(i32.mul(pitchOf(rows), 4 * panelRows));
      const target = f.i32(at(asColumns, i32.mul(head, panelsOf(p.d, panelRows)), panelBytes));
      f.for(from, end, 1, (row) => {
        const column = f.i32(source.at(row));
        const last = f.i32(at(column, p.d));
        const to = f.i32(at(target, row, 4 * panelRows));
        f.while(i32.ltU(column, last), () => {
          for (let first = 0; first < panelRows; first += 4) {
            storeWords(f, to, v128.load(column, 4 * first), panelRows - first, 4 * first);
          }
          f.set(column, i32.add(column, 4 * panelRows));
          f.set(to, i32.add(to, panelBytes));
        });
      });
    });
  },
);

/** What the gradients need of each query, [3][heads][s · group]: max, logSum and dy · y. A task is PACK_HEADS rows of one head. */
export const queryShifts = defineKernel(
  words("dy", "y", "lse", "shifts", "heads", "s", "g", "group", "d", "parts"),
  (f, { dy, y, lse, shifts, heads, parts, ...p }, { task }) => {
    const head = f.i32(i32.divU(task, parts));
    const source = new HeadRows(f, { ...p, src: dy }, head);
    const pairs = new HeadRows(f, { ...p, src: lse, d: f.i32(2) }, head);
    const rows = f.i32(i32.mul(p.s, p.group));
    const from = f.i32(i32.mul(i32.remU(task, parts), PACK_HEADS));
    const end = f.i32(i32.min(rows, f.i32(i32.add(from, PACK_HEADS))));
    const sumOf = summer(f, 2);
    const plane = f.i32(i32.mul(i32.mul(heads, rows), 4));
    f.for(from, end, 1, (row) => {
      const dyRow = f.i32(source.at(row));
      const yRow = i32.add(y, i32.sub(dyRow, dy));
      const pair = f.i32(pairs.at(row));
      const out = f.i32(at(shifts, i32.add(i32.mul(head, rows), row)));
      const dot = sumOf(p.d, [dyRow, yRow], (sum, [dy, y]) => f.madd(dy.load(), y.load(), sum));
      f.do(
        f32.store(out, f32.load(pair)),
        f32.store(i32.add(out, plane), f32.load(pair, 4)),
        f32.store(i32.add(out, i32.mul(plane, 2)), dot),
      );
    });
  },
);
