/**
 * Decoding of NF4 weights to f32, sixteen elements at a time. A level is a f32, and a byte shuffle looks up sixteen bytes at once;
 * so `bytePlanes` splits the table of 16 levels into four tables of 16 bytes, and four lookups give the bytes of sixteen levels,
 * which are then interleaved.
 *
 *     for block of the weight: begin(scale)
 *       if the first element is the low nibble of a byte: one(level)
 *       while 16 elements: 8 bytes -> 16 codes -> 4 lookups -> interleave -> sixteen(levels)
 *       the rest: one(level)
 *       end()
 */

import { NF4_MAP_AT, NF4_OFFSET_AT } from "../../quant-maps.ts";
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i8x16, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { type Words, words } from "./kernel.ts";
import { at } from "./vectors.ts";

/** Addresses of the tensors of a weight (`scales` is 0 without double quantization), and log2 of its block sizes. */
export const WEIGHT = words("codes", "table", "absmax", "scales", "blockShift", "nestedShift");
type Weight = Words<keyof typeof WEIGHT>;

/** Emitters that consume decoded elements. Levels are not yet multiplied by the scale of their block. */
interface Sink {
  /** The start of a block or of a part of one. */
  begin(scale: Local<"f32">): void;
  /** Sixteen levels in order. */
  sixteen(levels: readonly V128[]): void;
  one(level: Expr<"f32">, scale: Local<"f32">): void;
  end(): void;
}

/** Groups of `size` bytes of a and of b alternating, from byte `first` of each on. */
const interleave = (a: V128, b: V128, first: number, size: 1 | 2): V128 => {
  const bytes = Array.from({ length: 16 }, (_, i) => {
    const pair = Math.floor(i / (2 * size));
    const inPair = i % (2 * size);
    return first + pair * size + (inPair % size) + (inPair < size ? 0 : 16);
  });
  return v128.shuffleBytes(a, b, bytes);
};

/** Four vectors: byte j of each of the sixteen levels, for j = 0 .. 3. */
function bytePlanes(f: FunctionBuilder, table: Local<"i32">): Local<"v128">[] {
  const quarters = [0, 16, 32, 48].map((offset) => f.v128(v128.load(table, offset)));
  return [0, 1, 2, 3].map((j) => {
    const eight = (a: V128, b: V128) =>
      v128.shuffleBytes(
        a,
        b,
        Array.from({ length: 16 }, (_, i) => 4 * (i % 8) + j),
      );
    const [low, high] = [eight(quarters[0], quarters[1]), eight(quarters[2], quarters[3])];
    return f.v128(
      v128.shuffleBytes(
        low,
        high,
        Array.from({ length: 16 }, (_, i) => (i < 8 ? i : 8 + i)),
      ),
    );
  });
}

/** The scale of a block, rounded at each step as the reference does. */
function emitScale(f: FunctionBuilder, w: Weight, block: Local<"i32">, scale: Local<"f32">): void {
  f.if(
    w.scales,
    () => {
      const code = i32.load8U(i32.add(w.scales, block));
      const factor = f32.load(at(w.table, code), 4 * NF4_MAP_AT);
      const nested = f32.load(at(w.absmax, i32.shrU(block, w.nestedShift)));
      f.set(scale, f32.add(f32.mul(factor, nested), f32.load(w.table, 4 * NF4_OFFSET_AT)));
    },
    () => f.set(scale, f32.load(at(w.absmax, block))),
  );
}

/** Returns an emitter that decodes `count` elements from element `first` on into a sink. */
export function nf4Decoder(
  f: FunctionBuilder,
  w: Weight,
  sink: Sink,
): (first: Expr<"i32">, count: Expr<"i32">) => void {
  const planes = bytePlanes(f, w.table);
  const fifteen = f.v128(i8x16.splat(15));
  const [element, end, next, block] = [f.i32(), f.i32(), f.i32(), f.i32()];
  const scale = f.f32();
  const emitOne = () => {
    const byte = i32.load8U(i32.add(w.codes, i32.shrU(element, 1)));
    const code = i32.and(i32.shrU(byte, i32.shl(i32.and(i32.sub(1, element), 1), 2)), 15); // the earlier element is the high nibble
    sink.one(f32.load(at(w.table, code)), scale);
    f.set(element, i32.add(element, 1));
  };
  const emitSixteen = () => {
    const bytes = f.v128(v128.load64Zero(i32.add(w.codes, i32.shrU(element, 1))));
    const high = v128.and(i32x4.shrU(bytes, 4), fifteen);
    const codes = f.v128(interleave(high, v128.and(bytes, fifteen), 0, 1));
    const [a, b, c, d] = planes.map((plane) => f.v128(f.lookup(plane, codes)));
    const pairs = [0, 8].map((first) => [interleave(a, b, first, 1), interleave(c, d, first, 1)]);
    sink.sixteen(
      pairs.flatMap(([low, upper]) => {
        const [x, y] = [f.v128(low), f.v128(upper)];
        return [interleave(x, y, 0, 2), interleave(x, y, 8, 2)];
      }),
    );
    f.set(element, i32.add(element, 16));
  };
  return (first, count) => {
    f.set(element, first);
    f.set(end, i32.add(first, count));
    f.while(i32.ltU(element, end), () => {
      f.set(block, i32.shrU(element, w.blockShift));
      f.set(next, i32.shl(i32.add(block, 1), w.blockShift));
      f.set(next, i32.minU(next, end));
      emitScale(f, w, block, scale);
      sink.begin(scale);
      f.if(i32.and(element, 1), emitOne);
      f.while(i32.geS(i32.sub(next, element), 16), emitSixteen);
      f.while(i32.ltU(element, next), emitOne);
      sink.end();
    });
  };
}

/** A sink that stores scaled elements at `to`, and advances it. */
export function storingSink(f: FunctionBuilder, to: Local<"i32">): Sink {
  const factor = f.v128();
  return {
    begin: (scale) => f.set(factor, f32x4.splat(scale)),
    sixteen(levels) {
      for (const [i, four] of levels.entries()) f.do(v128.store(to, f32x4.mul(four, factor), 16 * i));
      f.set(to, i32.add(to, 64));
    },
    one(level, scale) {
      f.do(f32.store(to, f32.mul(level, scale)));
      f.set(to, i32.add(to, 4));
    },
    end: () => {},
  };
}
