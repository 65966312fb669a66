/**
 * Kernels of matrix multiplication, batched. Both operands are packed into panels (library.ts), then `matmulBlocks` computes
 * blocks of tiles; matmul-plan.ts says in which windows. Strides are in bytes.
 */
import { type I32, i32 } from "../assembler/instructions.ts";
import { bytesOf, type Source } from "./f16.ts";
import { defineKernel, words } from "./kernel.ts";
import { emitTileCall, PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { PACK_STEPS } from "./tasks.ts";
import { at, rowAt } from "./vectors.ts";

/** Steps of k that a tile sums in registers: panels of so many steps fit the L1 cache. */
const SUM_STEPS = 256;

/** The batch of a task and its part of that. */
const batchOf = (task: I32, parts: I32): [I32, I32] => [i32.divU(task, parts), i32.remU(task, parts)];

const PACK = words("src", "row", "k", "dst", "panels", "srcBatch", "dstBatch");

/** Panels from `count` rows of a (nn, nt), or of b, which are columns of bᵀ (nt); a task is a panel. */
const packRowsOf = (side: "left" | "right", source: Source) =>
  defineKernel({ ...PACK, count: "i32" } as const, (f, p, { task, library: { packRows, panelRows } }) => {
    const width = side === "left" ? panelRows : PANEL_COLS;
    const [batch, part] = batchOf(task, p.panels);
    const first = f.i32(i32.mul(part, width));
    const src = at(at(p.src, batch, p.srcBatch), first, p.row);
    const dst = rowAt(at(p.dst, batch, p.dstBatch), first, p.k);
    const rows = i32.min(f.i32(i32.sub(p.count, first)), width);
    f.call(side === "left" ? packRows.left : packRows.right[source], src, p.row, rows, p.k, dst);
  });

export const packLeftRows = packRowsOf("left", "f32");
export const packRightRowsF32 = packRowsOf("right", "f32");
export const packRightRowsF16 = packRowsOf("right", "f16");

/** Panels from columns of a (tn) or of b (nn); a task is PACK_STEPS rows of the matrix, for all panels. */
const packColumnsOf = (side: "left" | "right", source: Source) =>
  defineKernel({ ...PACK, parts: "i32" } as const, (f, p, { task, library: { packColumns, panelRows } }) => {
    const width = side === "left" ? panelRows : PANEL_COLS;
    const [batch, part] = batchOf(task, p.parts);
    const first = f.i32(i32.mul(part, PACK_STEPS));
    const steps = f.i32(i32.min(f.i32(i32.sub(p.k, first)), PACK_STEPS));
    const src = f.i32(at(at(p.src, batch, p.srcBatch), first, p.row));
    const dst = f.i32(at(at(p.dst, batch, p.dstBatch), first, 4 * width));
    const callee = side === "left" ? packColumns.left : packColumns.right[source];
    f.for(0, p.panels, 1, () => {
      f.call(callee, src, p.row, steps, dst);
      f.set(src, i32.add(src, width * bytesOf(source)));
      f.set(dst, at(dst, p.k, 4 * width));
    });
  });

export const packLeftColumns = packColumnsOf("left", "f32");
export const packRightColumnsF32 = packColumnsOf("right", "f32");
export const packRightColumnsF16 = packColumnsOf("right", "f16");

/**
 * c[m,n] = init + a·b from panels. A task is a block of `blockRows` x `blockCols` tiles. `init` is the address of initial values or
 * 0: c itself to accumulate, or a bias with a row stride of 0.
 *
 *     for k0 in steps of SUM_STEPS:
 *       for right panel of the block: for left panel of the block:
 *         tile of c = (k0 = 0 ? init : tile of c) + left panel · right panel over steps k0 .. k0 + SUM_STEPS
 */
export const matmulBlocks = defineKernel(
  {
    ...words("a", "b", "c", "init", "m", "n", "k", "cRow", "initRow"),
    ...words("aBatch", "bBatch", "cBatch", "initBatch"),
    ...words("blockRows", "blockCols", "blocksDown", "blocks"),
  } as const,
  (f, p, { task, scratch, library }) => {
    const { panelRows } = library;
    const batch = f.i32(i32.divU(task, p.blocks));
    const block = f.i32(i32.remU(task, p.blocks));
    const aBase = f.i32(at(p.a, batch, p.aBatch));
    const bBase = f.i32(at(p.b, batch, p.bBatch));
    const cBase = f.i32(at(p.c, batch, p.cBatch));
    const initBase = f.i32(at(p.init, batch, p.initBatch));
    const firstRow = f.i32(i32.mul(i32.mul(i32.remU(block, p.blocksDown), p.blockRows), panelRows));
    const firstCol = f.i32(i32.mul(i32.mul(i32.divU(block, p.blocksDown), p.blockCols), PANEL_COLS));
    const lastRow = f.i32(i32.min(p.m, f.i32(i32.add(firstRow, i32.mul(p.blockRows, panelRows)))));
    const lastCol = f.i32(i32.min(p.n, f.i32(i32.add(firstCol, i32.mul(p.blockCols, PANEL_COLS)))));
    f.for(0, p.k, SUM_STEPS, (k0) => {
      const steps = f.i32(i32.min(f.i32(i32.sub(p.k, k0)), SUM_STEPS));
      f.for(firstCol, lastCol, PANEL_COLS, (col) => {
        const step = i32.add(i32.mul(i32.divU(col, PANEL_COLS), p.k), k0);
        const b = f.i32(at(bBase, step, PANEL_COL_BYTES));
        const cols = f.i32(i32.sub(p.n, col));
        f.for(firstRow, lastRow, panelRows, (row) => {
          const a = at(aBase, i32.add(i32.mul(row, p.k), i32.mul(k0, panelRows)));
          const c = f.i32(at(at(cBase, row, p.cRow), col));
          const [init, initRow] = [f.i32(c), f.i32(p.cRow)];
          f.if(i32.eqz(k0), () => {
            f.set(init, at(at(initBase, row, p.initRow), col));
            f.set(initRow, p.initRow);
            f.if(i32.eqz(p.init), () => f.set(init, 0));
          });
          const rows = f.i32(i32.sub(p.m, row));
          emitTileCall(f, library, [a, b, steps, c, p.cRow, init, initRow], { rows, cols, scratch });
        });
      });
    });
  },
);
