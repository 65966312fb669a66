/** Addresses, loops over vectors of four elements, and reductions over them. */
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

/** The address of item `index` of those of `bytes` bytes at `base`. */
export const at = (base: I32, index: I32, bytes: I32 = 4): Expr<"i32"> =>
  i32.add(base, i32.mul(index, bytes));

/** The address of row `row` of a matrix whose rows are `c` words of four bytes. */
export const rowAt = (base: I32, row: I32, c: I32): Expr<"i32"> => at(base, i32.mul(row, c));

/** An array that a loop runs over: where it starts. Its elements have four bytes, or as many as are given. */
export type Operand = I32 | readonly [start: I32, bytes: 1 | 2 | 4];

export const startOf = (operand: Operand): readonly [start: I32, bytes: 1 | 2 | 4] =>
  typeof operand === "number" || "code" in operand ? [operand, 4] : operand;

/** The elements of one array in a round of a loop: four, or at the end of the row a single one. */
export interface Elements {
  /** Their address is this plus `offset`. */
  readonly pointer: Local<"i32">;
  readonly offset: number;
  /** Four f32; a single one in every lane. */
  load(): V128;
  store(value: V128): void;
  /** All bits of each lane whose byte of a mask is not 0; of a single element, in every lane. */
  loadMask(): V128;
  /** Writes a byte for each lane: 1 where its bits are set, else 0. */
  storeMask(mask: V128): void;
}

/** A round of a loop. */
export interface Round {
  /** Adds to the round's accumulator; `next` is the new sum from the old one. A single element counts in one lane only. */
  sum(sums: readonly Local<"v128">[], next: (sum: Local<"v128">) => V128): void;
  /** The round of an unrolled loop, 0 .. unroll - 1: the number of the accumulator to use. */
  readonly round: number;
  /** How many elements there are. */
  readonly lanes: 4 | 1;
}

/** Emits what a loop does with the elements of each of its arrays. */
export type Body = (elements: readonly Elements[], round: Round) => void;

const ZERO = v128.constant([0, 0, 0, 0]);
const ONES = v128.constant([1, 1, 1, 1]);
const FIRST_LANE = v128.constant([-1, 0, 0, 0]);
/** Bytes 0 .. 3 as the low bytes of four words; byte 16 is a zero of the second operand. */
const WIDEN_BYTES = [0, 1, 2, 3].flatMap((byte) => [byte, 16, 16, 16]);
/** The low bytes of four words, side by side. */
const LOW_BYTES = [0, 4, 8, 12, ...Array<number>(12).fill(16)];

const four = (f: FunctionBuilder, pointer: Local<"i32">, offset: number): Elements => ({
  pointer,
  offset,
  load: () => v128.load(pointer, offset),
  store: (value) => f.do(v128.store(pointer, value, offset)),
  loadMask: () => i32x4.gtS(v128.shuffleBytes(v128.load32Zero(pointer, offset), ZERO, WIDEN_BYTES), ZERO),
  storeMask: (mask) =>
    f.do(v128.store32Lane(pointer, v128.shuffleBytes(v128.and(mask, ONES), ZERO, LOW_BYTES), 0, offset)),
});

const single = (f: FunctionBuilder, pointer: Local<"i32">): Elements => ({
  pointer,
  offset: 0,
  load: () => v128.load32Splat(pointer),
  store: (value) => f.do(v128.store32Lane(pointer, value, 0)),
  loadMask: () => i32x4.gtS(i32x4.splat(i32.load8U(pointer)), ZERO),
  storeMask: (mask) => f.do(i32.store8(pointer, i32.and(i32x4.lane(mask, 0), 1))),
});

/**
 * Runs the body over `count` elements of each array, four at a time and then one by one. With `unroll` rounds in a row, a sum can
 * have an accumulator for each, so that its additions do not wait for one another.
 *
 *     while count >= 4 · unroll: body(round 0), ..., body(round unroll - 1)
 *     while count >= 4:          body(four elements)
 *     while count > 0:           body(one element)
 */
export function forVectors(
  f: FunctionBuilder,
  count: I32,
  operands: readonly Operand[],
  body: Body,
  unroll = 1,
): void {
  const left = f.i32(count);
  const pointers = operands.map((operand) => {
    const [start, bytes] = startOf(operand);
    return { pointer: f.i32(start), bytes };
  });
  const loop = (rounds: number, lanes: 4 | 1) => {
    const elements = rounds * lanes;
    f.while(i32.geS(left, elements), () => {
      for (let round = 0; round < rounds; round++) {
        const own = pointers.map(({ pointer, bytes }) =>
          lanes === 4 ? four(f, pointer, 4 * bytes * round) : single(f, pointer),
        );
        body(own, { lanes, round, sum: lanes === 4 ? addTo(f, round) : addSingle(f) });
      }
      for (const { pointer, bytes } of pointers) f.set(pointer, i32.add(pointer, bytes * elements));
      f.set(left, i32.sub(left, elements));
    });
  };
  if (unroll > 1) loop(unroll, 4);
  loop(1, 4);
  loop(1, 1);
}

const addTo =
  (f: FunctionBuilder, round: number): Round["sum"] =>
  (sums, next) =>
    f.set(sums[round], next(sums[round]));

const addSingle =
  (f: FunctionBuilder): Round["sum"] =>
  ([sum], next) =>
    f.set(sum, v128.bitselect(next(sum), sum, FIRST_LANE));

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
    operands: readonly Operand[],
    next: (sum: Local<"v128">, elements: readonly Elements[]) => V128,
  ): Expr<"f32"> => {
    setAll(f, sums, ZERO);
    forVectors(f, count, operands, (elements, { sum }) => sum(sums, (old) => next(old, elements)), unroll);
    return sumLanes(f, sums);
  };
}

/** Returns an emitter of the largest of `start` (a vector) and of `value` over a row of `count` elements. */
export function maximizer(f: FunctionBuilder, unroll = 4) {
  const bests = accumulators(f, unroll);
  return (
    count: I32,
    operands: readonly Operand[],
    value: (elements: readonly Elements[], round: Round) => V128,
    start: V128,
  ): Expr<"f32"> => {
    setAll(f, bests, start);
    // pmax keeps its first operand if a comparison is false, so a NaN wins only as the start.
    const larger: Body = (elements, round) => {
      const best = bests[round.round];
      f.set(best, f32x4.pmax(best, value(elements, round)));
    };
    forVectors(f, count, operands, larger, unroll);
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
