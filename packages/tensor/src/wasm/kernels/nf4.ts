/** Kernels of NF4 weights: decoding, lookup of rows, packing as the right operand of a matmul, and quantization. */
import type { FunctionBuilder } from "../assembler/function.ts";
import { f32, f32x4, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { bytesOf, loader, type Source } from "./f16.ts";
import { defineKernel, words } from "./kernel.ts";
import { PANEL_COL_BYTES, PANEL_COLS } from "./library.ts";
import { nf4Decoder, storingSink, WEIGHT } from "./nf4-decode.ts";
import { CHUNK, forRows, PACK_STEPS } from "./tasks.ts";
import { at, type Elements, maximizer, type Round, rowAt } from "./vectors.ts";

/** w = the decoded weight; a task is a chunk of elements. */
export const decodeNf4 = defineKernel({ ...WEIGHT, w: "i32", n: "i32" } as const, (f, p, { task }) => {
  const first = f.i32(i32.mul(task, CHUNK));
  const to = f.i32(at(p.w, first));
  const decode = nf4Decoder(f, p, storingSink(f, to));
  decode(first, i32.min(f.i32(i32.sub(p.n, first)), CHUNK));
});

/** y[n] = row ids[n] of a weight whose rows have `width` elements, or zeros for an id outside 0 .. v - 1; a task is `rows` rows. */
export const embeddingNf4 = defineKernel(
  { ...WEIGHT, ...words("ids", "y", "n", "v", "width", "rows") } as const,
  (f, p, { task }) => {
    const to = f.i32();
    const decode = nf4Decoder(f, p, storingSink(f, to));
    forRows(f, task, p, (row) => {
      const id = f.i32(i32.load(at(p.ids, row)));
      f.set(to, rowAt(p.y, row, p.width));
      f.if(
        i32.ltU(id, p.v),
        () => decode(i32.mul(id, p.width), p.width),
        () => f.zeroBytes(to, i32.mul(p.width, 4)),
      );
    });
  },
);

/** The window to pack, n from n0 and k from k0, of a weight whose rows have `width` elements. */
const WINDOW = words("n0", "n", "k0", "k", "width", "dst");

/** Right panels from rows of the weight (nt), decoded to scratch first; a task is a panel. */
export const packNf4Rows = defineKernel(
  { ...WEIGHT, ...WINDOW } as const,
  (f, p, { task, scratch, library: { packRows } }) => {
    const first = f.i32(i32.mul(task, PANEL_COLS));
    const rows = f.i32(i32.min(f.i32(i32.sub(p.n, first)), PANEL_COLS));
    const decode = nf4Decoder(f, p, storingSink(f, f.i32(scratch)));
    f.for(0, rows, 1, (row) => {
      decode(i32.add(i32.mul(i32.add(i32.add(p.n0, first), row), p.width), p.k0), p.k);
    });
    const dst = rowAt(p.dst, first, p.k);
    f.call(packRows.right.f32, scratch, i32.mul(p.k, 4), rows, p.k, dst);
  },
);

/** Columns that are decoded at a time: a multiple of PANEL_COLS, of which PACK_STEPS rows fit a thread's scratch. */
const DECODED_COLS = 512;

/** Right panels from columns of the weight (nn); a task is PACK_STEPS rows of the weight, for all panels. */
export const packNf4Columns = defineKernel(
  { ...WEIGHT, ...WINDOW } as const,
  (f, p, { task, scratch, library: { packColumns } }) => {
    const first = f.i32(i32.mul(task, PACK_STEPS));
    const steps = f.i32(i32.min(f.i32(i32.sub(p.k, first)), PACK_STEPS));
    const [to, dst] = [f.i32(), f.i32(at(p.dst, first, PANEL_COL_BYTES))];
    const decode = nf4Decoder(f, p, storingSink(f, to));
    f.for(0, p.n, DECODED_COLS, (col) => {
      const cols = f.i32(i32.min(f.i32(i32.sub(p.n, col)), DECODED_COLS));
      f.for(0, steps, 1, (row) => {
        f.set(to, at(scratch, row, 4 * DECODED_COLS));
        const weightRow = i32.add(i32.add(p.k0, first), row);
        decode(i32.add(i32.mul(weightRow, p.width), i32.add(p.n0, col)), cols);
      });
      f.for(scratch, f.i32(at(scratch, cols)), PANEL_COL_BYTES, (panel) => {
        f.call(packColumns.right.f32, panel, 4 * DECODED_COLS, steps, dst);
        f.set(dst, at(dst, p.k, PANEL_COL_BYTES));
      });
    });
  },
);

/** Returns an emitter of the codes of four scaled values: how many midpoints of neighbouring levels lie strictly below each. */
function nearestLevels(
  f: FunctionBuilder,
  table: ReturnType<FunctionBuilder["i32"]>,
): (scaled: V128) => V128 {
  const middles = Array.from({ length: 15 }, (_, i) => {
    const pair = f32.add(f32.load(table, 4 * i), f32.load(table, 4 * i + 4));
    return f.v128(f32x4.splat(f32.mul(pair, 0.5)));
  });
  return (scaled) => {
    const value = f.v128(scaled);
    const code = f.v128(v128.constant([0, 0, 0, 0]));
    for (const middle of middles) f.set(code, i32x4.sub(code, f32x4.gt(value, middle)));
    return code;
  };
}

/**
 * Quantizes the n elements of w, which are elements `at` .. `at` + n of a weight; a task is `rows` blocks.
 *
 *     for block: absmax = max |w|;  codes = nearest levels of w / absmax, two a byte, the earlier one in the high nibble
 *
 * If the number of elements is odd, the low nibble of the last byte is 7, the code of zero.
 */
const quantize = (source: Source) =>
  defineKernel(
    words("w", "table", "codes", "absmax", "n", "blocks", "blockShift", "at", "rows"),
    (f, p, frame) => {
      const bytes = bytesOf(source);
      const load4 = loader(f, source);
      const codesOf = nearestLevels(f, p.table);
      const largest = maximizer(f, 1);
      const [from, left, to] = [f.i32(), f.i32(), f.i32()];
      const [zero, factor] = [f.v128(), f.v128()];
      const advance = (elements: number) => {
        f.set(from, i32.add(from, elements * bytes));
        f.set(left, i32.sub(left, elements));
      };
      forRows(f, frame.task, { rows: p.rows, n: p.blocks }, (row) => {
        const first = f.i32(i32.shl(row, p.blockShift));
        const count = f.i32(i32.min(f.i32(i32.sub(p.n, first)), i32.shl(1, p.blockShift)));
        f.set(from, at(p.w, first, bytes));
        // Of a single element load4 reads more than the element, which only the first lane holds.
        const magnitude = ([w]: readonly Elements[], { lanes }: Round) => {
          const value = f.v128(f32x4.abs(load4(w.pointer)));
          return lanes === 4 ? value : v128.shuffle(value, value, [0, 0, 0, 0]);
        };
        const max = f.f32(largest(count, [[from, bytes]], magnitude, zero));
        const element = f.i32(i32.add(p.at, first));
        f.do(f32.store(at(p.absmax, i32.shrU(element, p.blockShift)), max));
        f.set(factor, f32x4.splat(f32.select(f32.gt(max, 0), f32.div(1, max), 0)));
        f.set(left, count);
        f.set(to, i32.add(p.codes, i32.shrU(element, 1)));
        f.while(i32.geS(left, 8), () => {
          const [a, b] = [0, 4].map((i) => codesOf(f32x4.mul(load4(from, i * bytes), factor)));
          const [early, late] = [v128.shuffle(a, b, [0, 2, 4, 6]), v128.shuffle(a, b, [1, 3, 5, 7])];
          const pairs = f.v128(v128.or(i32x4.shl(early, 4), late));
          const packed = v128.shuffleBytes(pairs, pairs, [0, 4, 8, 12, ...Array(12).fill(0)]);
          f.do(v128.store32Lane(to, packed, 0));
          f.set(to, i32.add(to, 4));
          advance(8);
        });
        const isLate = f.i32(0);
        f.while(i32.gtS(left, 0), () => {
          const code = f.i32(i32x4.lane(codesOf(f32x4.mul(load4(from), factor)), 0));
          f.if(
            isLate,
            () => {
              f.do(i32.store8(to, i32.or(i32.and(i32.load8U(to), 0xf0), code)));
              f.set(to, i32.add(to, 1));
            },
            () => f.do(i32.store8(to, i32.or(i32.shl(code, 4), 7))),
          );
          f.set(isLate, i32.sub(1, isLate));
          advance(1);
        });
      });
    },
  );

export const quantizeNf4F32 = quantize("f32");
export const quantizeNf4F16 = quantize("f16");
