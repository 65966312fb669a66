/** Loops over vectors of four elements, and reductions over them. */
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

/** A pointer that a loop advances with its elements, of four bytes or of as many as are given. */
export type Pointer = Local<"i32"> | readonly [pointer: Local<"i32">, bytes: 1 | 2 | 4];

/** Advances pointers by a number of elements. */
export function advance(f: FunctionBuilder, pointers: readonly Pointer[], elements: I32): void {
  for (const entry of pointers) {
    const [pointer, bytes] = "code" in entry ? [entry, 4] : entry;
    const by = typeof elements === "number" ? bytes * elements : i32.mul(elements, bytes);
    f.set(pointer, i32.add(pointer, by));
  }
}

/** How the body of a loop over a row reaches its elements: four at once, or at the end of the row one by one. */
export interface Access {
  /** Four f32; a single one in every lane. */
  load(pointer: Local<"i32">): V128;
  store(pointer: Local<"i32">, value: V128): void;
  /** All bits of each lane whose byte of a mask is not 0; of a single element, in every lane. */
  loadMask(pointer: Local<"i32">): V128;
  /** Writes a byte for each lane: 1 where its bits are set, else 0. */
  storeMask(pointer: Local<"i32">, mask: V128): void;
  /** Adds to the round's accumulator; `next` is the new sum from the old one. A single element counts in one lane only. */
  sum(sums: readonly Local<"v128">[], next: (sum: Local<"v128">) => V128): void;
  /** The round of an unrolled loop, 0 .. unroll - 1: the number of the accumulator to use. */
  readonly round: number;
  /** How many elements there are. */
  readonly lanes: 4 | 1;
}

const ZERO = v128.constant([0, 0, 0, 0]);
const ONES = v128.constant([1, 1, 1, 1]);
const FIRST_LANE = v128.constant([-1, 0, 0, 0]);
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
  sum: (sums, next) => f.set(sums[round], next(sums[round])),
  round,
  lanes: 4,
});

const single = (f: FunctionBuilder): Access => ({
  load: v128.load32Splat,
  store: (pointer, value) => f.do(v128.store32Lane(pointer, value, 0)),
  loadMask: (pointer) => i32x4.gtS(i32x4.splat(i32.load8U(pointer)), ZERO),
  storeMask: (pointer, mask) => f.do(i32.store8(pointer, i32.and(i32x4.lane(mask, 0), 1))),
  sum: ([sum], next) => f.set(sum, v128.bitselect(next(sum), sum, FIRST_LANE)),
  round: 0,
  lanes: 1,
});

/**
 * Runs the body over `count` elements at each of the pointers, four at a time and then one by one; it leaves the pointers after
 * the last element. With `unroll` rounds in a row, a sum can have an accumulator for each, so that its additions do not wait for
 * one another.
 *
 *     while count >= 4 · unroll: body(round 0), ..., body(round unroll - 1)
 *     while count >= 4:          body(four elements)
 *     while count > 0:           body(one element)
 */
export function forVectors(
  f: FunctionBuilder,
  count: I32,
  pointers: readonly Pointer[],
  body: (access: Access) => void,
  unroll = 1,
): void {
  const left = f.i32(count);
  const loop = (accesses: readonly Access[]) => {
    const elements = accesses.reduce((sum, { lanes }) => sum + lanes, 0);
    f.while(i32.geS(left, elements), () => {
      for (const access of accesses) body(access);
      advance(f, pointers, elements);
      f.set(left, i32.sub(left, elements));
    });
  };
  if (unroll > 1) loop(Array.from({ length: unroll }, (_, round) => fourAt(f, round)));
  loop([fourAt(f, 0)]);
  loop([single(f)]);
}

/** A value in all lanes. */
export const splat = (f: FunctionBuilder, value: F32): Local<"v128"> => f.v128(f32x4.splat(value));

/** Accumulators of a loop over a row. Four hide the latency of an addition. */
export const accumulators = (f: FunctionBuilder, count = 4): Local<"v128">[] =>
  Array.from({ length: count }, () => f.v128());

export const setAll = (f: FunctionBuilder, locals: readonly Local<"v128">[], value: V128): void => {
  for (const local of locals) f.set(local, value);
};

/** Returns an emitter of sums over rows of `count` elements; `next` gives the new sum from the old one and four elements. */
export function summer(f: FunctionBuilder, unroll = 4) {
  const sums = accumulators(f, unroll);
  return (
    count: I32,
    pointers: readonly Pointer[],
    next: (sum: Local<"v128">, access: Access) => V128,
  ): Expr<"f32"> => {
    setAll(f, sums, ZERO);
    forVectors(f, count, pointers, (access) => access.sum(sums, (sum) => next(sum, access)), unroll);
    return sumLanes(f, sums);
  };
}

/** Returns an emitter of the largest of `start` (a vector) and of `value` over a row of `count` elements. */
export function maximizer(f: FunctionBuilder, unroll = 4) {
  const bests = accumulators(f, unroll);
  return (
    count: I32,
    pointers: readonly Pointer[],
    value: (access: Access) => V128,
    start: V128,
  ): Expr<"f32"> => {
    setAll(f, bests, start);
    // pmax keeps its first operand if a comparison is false, so a NaN wins only as the start.
    const larger = (access: Access) =>
      f.set(bests[access.round], f32x4.pmax(bests[access.round], value(access)));
    forVectors(f, count, pointers, larger, unroll);
    return maxLanes(f, bests);
  };
}

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
