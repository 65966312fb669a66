/** Loops over vectors of four elements, and reductions over their lanes. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import {
  type Expr,
  type F32,
  f32,
  f32x4,
  type I32,
  i32,
  i32x4,
  type V128,
  v128,
} from "../assembler/instructions.ts";

/**
 * How the body of a loop over a row reaches its elements: four at once, or at the end of the row one by one. `load` of a
 * single element has zeros in the other three lanes.
 */
export interface Access {
  load(pointer: Local<"i32">): V128;
  store(pointer: Local<"i32">, value: V128): void;
  /** All bits of each lane whose byte of a mask is not 0; of a single element, in every lane. */
  loadMask(pointer: Local<"i32">): V128;
  /** Writes a byte for each lane: 1 where its bits are set, else 0. */
  storeMask(pointer: Local<"i32">, mask: V128): void;
  /** The round of an unrolled loop, 0 .. unroll - 1: the number of the accumulator to add to. */
  readonly round: number;
  /** How many elements there are. */
  readonly lanes: 4 | 1;
}

const ZERO = v128.constant([0, 0, 0, 0]);
const ONES = v128.constant([1, 1, 1, 1]);
/** Bytes 0 .. 3 as the low bytes of four words; byte 16 is a zero of the second operand. */
const WIDEN_BYTES = [0, 1, 2, 3].flatMap((byte) => [byte, 16, 16, 16]);
/** The low bytes of four words, side by side. */
const LOW_BYTES = [0, 4, 8, 12, ...Array<number>(12).fill(16)];

const fourAt = (f: FunctionBuilder, round: number): Access => ({
  load: (pointer) => v128.load(pointer, 16 * round),
  store: (pointer, value) => f.do(v128.store(pointer, value, 16 * round)),
  loadMask: (pointer) =>
    i32x4.gtS(v128.shuffleBytes(v128.load32Zero(pointer, 4 * round), ZERO, WIDEN_BYTES), ZERO),
  storeMask: (pointer, mask) =>
    f.do(v128.store32Lane(pointer, v128.shuffleBytes(v128.and(mask, ONES), ZERO, LOW_BYTES), 0, 4 * round)),
  round,
  lanes: 4,
});

const single = (f: FunctionBuilder): Access => ({
  load: v128.load32Zero,
  store: (pointer, value) => f.do(v128.store32Lane(pointer, value, 0)),
  loadMask: (pointer) => i32x4.gtS(i32x4.splat(i32.load8U(pointer)), ZERO),
  storeMask: (pointer, mask) => f.do(i32.store8(pointer, i32.and(i32x4.lane(mask, 0), 1))),
  round: 0,
  lanes: 1,
});

/**
 * Runs the body over `count` f32 elements at each of `pointers`, and as many bytes at each of `masks`, four at a time and
 * then one by one; it leaves the pointers after the last element. With `unroll` rounds in a row, a sum can have an
 * accumulator for each, so that its additions do not wait for one another.
 *
 *     while count >= 4 · unroll: body(round 0), ..., body(round unroll - 1)
 *     while count >= 4:          body(four elements)
 *     while count > 0:           body(one element)
 */
export function forVectors(
  f: FunctionBuilder,
  count: I32,
  pointers: readonly Local<"i32">[],
  body: (access: Access) => void,
  unroll = 1,
  masks: readonly Local<"i32">[] = [],
): void {
  const left = f.i32(count);
  const advance = (elements: number) => {
    for (const pointer of pointers) f.set(pointer, i32.add(pointer, 4 * elements));
    for (const pointer of masks) f.set(pointer, i32.add(pointer, elements));
    f.set(left, i32.sub(left, elements));
  };
  if (unroll > 1) {
    f.while(i32.geS(left, 4 * unroll), () => {
      for (let round = 0; round < unroll; round++) body(fourAt(f, round));
      advance(4 * unroll);
    });
  }
  f.while(i32.geS(left, 4), () => {
    body(fourAt(f, 0));
    advance(4);
  });
  f.while(i32.gtS(left, 0), () => {
    body(single(f));
    advance(1);
  });
}

/** Accumulators of a reduction. */
export const accumulators = (f: FunctionBuilder, count: number, start?: V128): Local<"v128">[] =>
  Array.from({ length: count }, () => f.v128(start));

const fold = <T>(values: readonly T[], combine: (a: T, b: T) => T): T => {
  if (values.length === 1) return values[0];
  const half = values.length >> 1;
  return combine(fold(values.slice(0, half), combine), fold(values.slice(half), combine));
};

/** The sum of all lanes of all vectors. */
export function sumLanes(f: FunctionBuilder, vectors: readonly V128[]): Expr<"f32"> {
  const all = f.v128(fold(vectors, f32x4.add));
  const pair = (a: number, b: number) => f32.add(f32x4.lane(all, a), f32x4.lane(all, b));
  return f32.add(pair(0, 2), pair(1, 3));
}

/** The largest lane of all vectors. */
export function maxLanes(f: FunctionBuilder, vectors: readonly V128[]): Expr<"f32"> {
  const all = f.v128(fold(vectors, f32x4.pmax));
  const pair = (a: number, b: number): F32 => f32.max(f32x4.lane(all, a), f32x4.lane(all, b));
  return f32.max(pair(0, 2), pair(1, 3));
}

/** A mask of the first lane: for sums whose term is not 0 in the lanes without an element. */
export const firstLane = (f: FunctionBuilder): Local<"v128"> => f.v128(v128.constant([-1, 0, 0, 0]));
