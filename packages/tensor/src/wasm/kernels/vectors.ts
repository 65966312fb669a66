/** Loops over vectors of four, and sums of their lanes. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import {
  type Expr,
  type F32,
  f32,
  f32x4,
  type I32,
  i32,
  type V128,
  v128,
} from "../assembler/instructions.ts";

/** How a loop's body reaches elements: four at once, or at the end one, with zeros in the other lanes. */
export interface Access {
  load(pointer: Local<"i32">): V128;
  store(pointer: Local<"i32">, value: V128): void;
  /** Which of the unrolled rounds this is: the accumulator to take. */
  readonly round: number;
  /** Elements at hand. */
  readonly lanes: 4 | 1;
}

/**
 * Runs the body over `count` f32 elements behind each pointer, and leaves the pointers after the last one. `unroll` rounds
 * in one go, for sums with an accumulator each.
 */
export function forVectors(
  f: FunctionBuilder,
  count: I32,
  pointers: readonly Local<"i32">[],
  body: (access: Access) => void,
  unroll = 1,
): void {
  const left = f.i32(count);
  const advance = (elements: number) => {
    for (const pointer of pointers) f.set(pointer, i32.add(pointer, 4 * elements));
    f.set(left, i32.sub(left, elements));
  };
  const vectorAt = (round: number): Access => ({
    load: (pointer) => v128.load(pointer, 16 * round),
    store: (pointer, value) => f.do(v128.store(pointer, value, 16 * round)),
    round,
    lanes: 4,
  });
  if (unroll > 1) {
    f.while(i32.geS(left, 4 * unroll), () => {
      for (let round = 0; round < unroll; round++) body(vectorAt(round));
      advance(4 * unroll);
    });
  }
  f.while(i32.geS(left, 4), () => {
    body(vectorAt(0));
    advance(4);
  });
  f.while(i32.gtS(left, 0), () => {
    body({
      load: v128.load32Zero,
      store: (pointer, value) => f.do(v128.store32Lane(pointer, value, 0)),
      round: 0,
      lanes: 1,
    });
    advance(1);
  });
}

/** Accumulators of a reduction, and their combination. */
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

/** All bits of the first lane: what an element at the end may add to a sum. */
export const firstLane = (f: FunctionBuilder): Local<"v128"> => f.v128(v128.constant([-1, 0, 0, 0]));
