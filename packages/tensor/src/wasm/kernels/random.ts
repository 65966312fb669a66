/**
 * Uniform numbers and dropout from Philox 4x32-10, the same numbers as `Random` and the other devices draw. Four blocks are
 * computed at once: vector c_i holds word i of the counters of four consecutive blocks.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, i32, i32x4, i64x2, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, type Frame, type Words, words } from "./kernel.ts";
import { transpose4 } from "./library.ts";
import { CHUNK } from "./tasks.ts";
import { at, type Body, forVectors, splat } from "./vectors.ts";

const MULTIPLIERS = [0xd2511f53, 0xcd9e8d57] as const;
const WEYL = [0x9e3779b9, 0xbb67ae85] as const;
const ROUNDS = 10;
/** Words of a block, and of four blocks. */
const WORDS = 4;
const AT_ONCE = 4 * WORDS;
/** Numbers that are drawn to the thread's scratch before they are used. */
const DRAWN = 1024;

/** Returns an emitter that stores the words of blocks `block` .. `block` + 3 as uniform numbers in (0, 1). */
function uniformDrawer(f: FunctionBuilder, seed: Local<"i32">, stream: Local<"i32">) {
  const multipliers = MULTIPLIERS.map((bits) => f.v128(i32x4.splat(bits | 0)));
  const weyl = WEYL.map((bits) => f.v128(i32x4.splat(bits | 0)));
  const [half, step, lanes] = [
    f.v128(f32x4.splat(0.5)),
    f.v128(f32x4.splat(2 ** -23)),
    f.v128(v128.constant([0, 1, 2, 3])),
  ];
  const [c0, c1, c2, c3, k0, k1] = Array.from({ length: 6 }, () => f.v128());
  const multiply = (a: Local<"v128">, by: Local<"v128">): { high: V128; low: Local<"v128"> } => {
    const [early, late] = [f.v128(i64x2.extmulLowU(a, by)), f.v128(i64x2.extmulHighU(a, by))];
    return {
      high: v128.shuffle(early, late, [1, 3, 5, 7]),
      low: f.v128(v128.shuffle(early, late, [0, 2, 4, 6])),
    };
  };
  return (block: Local<"i32">, to: Local<"i32">) => {
    f.set(c0, i32x4.add(i32x4.splat(block), lanes));
    f.set(c1, v128.constant([0, 0, 0, 0]));
    f.set(c2, i32x4.splat(stream));
    f.set(c3, v128.constant([0, 0, 0, 0]));
    f.set(k0, i32x4.splat(seed));
    f.set(k1, v128.constant([0, 0, 0, 0]));
    for (let round = 0; round < ROUNDS; round++) {
      const first = multiply(c0, multipliers[0]);
      const second = multiply(c2, multipliers[1]);
      f.set(c0, v128.xor(v128.xor(second.high, c1), k0));
      f.set(c2, v128.xor(v128.xor(first.high, c3), k1));
      f.set(c1, second.low);
      f.set(c3, first.low);
      if (round === ROUNDS - 1) break;
      f.set(k0, i32x4.add(k0, weyl[0]));
      f.set(k1, i32x4.add(k1, weyl[1]));
    }
    for (const [i, bits] of transpose4(f, [c0, c1, c2, c3]).entries()) {
      const uniform = f32x4.mul(f32x4.add(f32x4.convert(i32x4.shrU(bits, 9)), half), step);
      f.do(v128.store(to, uniform, 4 * WORDS * i));
    }
  };
}

const SOURCE = words("n", "seed", "stream", "firstBlock");

/** Runs the body over the task's chunk; its first elements are uniform numbers. */
function forUniforms(
  f: FunctionBuilder,
  p: Words<keyof typeof SOURCE>,
  { task, scratch }: Frame,
  operands: readonly Local<"i32">[],
  body: Body,
): void {
  const draw = uniformDrawer(f, p.seed, p.stream);
  const start = f.i32(i32.mul(task, CHUNK));
  const end = f.i32(i32.min(p.n, f.i32(i32.add(start, CHUNK))));
  const block = f.i32(i32.add(p.firstBlock, i32.mul(task, CHUNK / WORDS)));
  f.for(start, end, DRAWN, (first) => {
    const count = f.i32(i32.min(f.i32(i32.sub(end, first)), DRAWN));
    f.for(0, count, AT_ONCE, (drawn) => {
      draw(block, f.i32(at(scratch, drawn)));
      f.set(block, i32.add(block, AT_ONCE / WORDS));
    });
    forVectors(f, count, [scratch, ...operands.map((operand) => at(operand, first))], body);
  });
}

/** x = uniform numbers; a task is a chunk. */
export const uniform = defineKernel({ ...SOURCE, ...words("x") } as const, (f, p, frame) =>
  forUniforms(f, p, frame, [p.x], ([drawn, x]) => x.store(drawn.load())),
);

/** y = 0 where a uniform number is below `rate`, else x · factor; a task is a chunk. */
export const dropout = defineKernel(
  { ...SOURCE, ...words("x", "y"), rate: "f32", factor: "f32" } as const,
  (f, p, frame) => {
    const [rate, factor] = [splat(f, p.rate), splat(f, p.factor)];
    forUniforms(f, p, frame, [p.x, p.y], ([drawn, x, y]) => {
      const isKept = f32x4.ge(drawn.load(), rate);
      y.store(v128.and(f32x4.mul(x.load(), factor), isKept));
    });
  },
);
