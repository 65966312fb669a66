/**
 * AdamW with 8-bit moments. The moments are computed in float32 without fused multiply-add, so that their codes agree with the
 * reference to the bit.
 *
 *     middles = midpoints of neighbouring entries of both maps
 *     for block of 256 elements of the task:
 *       m, v = map[code] · largest of the block
 *       AdamW step: new m, v and p; new largest |m| and |v|
 *       code = how many midpoints lie below m / largest (v / largest), by a binary search without branches
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, i32x4, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, type ParamTypes, words } from "./kernel.ts";
import { forRows } from "./tasks.ts";
import { firstLane, forVectors, maxLanes } from "./vectors.ts";

/** Elements of a block of moments, and entries of a map. */
const BLOCK = 256;
const ENTRIES = 256;
/** Offsets in the thread's scratch: the moments of a block, then the midpoints of both maps. */
const MOMENT_BYTES = 4 * BLOCK;
const MIDDLES_BYTES = 4 * ENTRIES;
const [MEANS, SQUARES, MIDDLES] = [0, MOMENT_BYTES, 2 * MOMENT_BYTES];
/** Replaces a largest magnitude of 0 as a divisor. */
const MIN_DIVISOR = 1e-37;

/** middles[c] = (map[c] + map[c + 1]) / 2 for the 255 pairs. */
function emitMiddles(f: FunctionBuilder, maps: Local<"i32">, scratch: Local<"i32">): void {
  const [entry, end, to] = [f.i32(), f.i32(), f.i32()];
  for (const map of [0, 1]) {
    f.set(entry, i32.add(maps, map * 4 * ENTRIES));
    f.set(end, i32.add(entry, 4 * (ENTRIES - 1)));
    f.set(to, i32.add(scratch, MIDDLES + map * MIDDLES_BYTES));
    f.while(i32.ne(entry, end), () => {
      f.do(f32.store(to, f32.mul(f32.add(f32.load(entry), f32.load(entry, 4)), 0.5)));
      f.set(entry, i32.add(entry, 4));
      f.set(to, i32.add(to, 4));
    });
  }
}

/** The code of a value, which is the number of midpoints strictly below it, by a binary search without branches. */
function emitCode(
  f: FunctionBuilder,
  middles: number,
  value: Local<"f32">,
  scratch: Local<"i32">,
): Expr<"i32"> {
  const at = f.i32(0); // four times the code
  for (let step = ENTRIES / 2; step >= 1; step /= 2) {
    const middle = f32.load(i32.add(scratch, at), middles + 4 * (step - 1));
    f.set(at, i32.add(at, i32.mul(f32.gt(value, middle), 4 * step)));
  }
  return i32.shrU(at, 2);
}

/** values[i] = map[codes[i]] for the elements of a block. */
function emitDecode(
  f: FunctionBuilder,
  [codes, map, values]: readonly [Local<"i32">, Expr<"i32">, Expr<"i32">],
  count: Local<"i32">,
): void {
  const i = f.i32();
  const [from, to] = [f.i32(map), f.i32(values)];
  f.for(i, 0, count, 1, () => {
    const entry = i32.mul(i32.load8U(i32.add(codes, i)), 4);
    f.do(i32.store(to, i32.load(i32.add(from, entry))));
    f.set(to, i32.add(to, 4));
  });
}

interface Encoded {
  readonly count: Local<"i32">;
  readonly scratch: Local<"i32">;
  /** Of means, then of squares. */
  readonly codes: readonly [Local<"i32">, Local<"i32">];
  /** The largest magnitudes of both. */
  readonly largest: readonly [Local<"f32">, Local<"f32">];
  /** The smallest entry above 0 of the map of squares. */
  readonly smallest: Local<"v128">;
}

/** Divides the moments of a block by the largest of each, and stores their codes. */
function emitEncode(f: FunctionBuilder, { count, scratch, codes, largest, smallest }: Encoded): void {
  const [m, v] = [MEANS, SQUARES].map((at) => f.i32(i32.add(scratch, at)));
  const [mLargest, vLargest] = largest.map((value) => f.v128(f32x4.splat(f32.max(value, MIN_DIVISOR))));
  const zero = f.v128(f32x4.splat(0));
  forVectors(f, count, [m, v], ({ load, store }) => {
    store(m, f32x4.div(load(m), mLargest));
    const square = f.v128(load(v));
    const minimum = v128.and(f32x4.gt(square, zero), smallest); // a v above 0 must not become 0
    store(v, f32x4.max(f32x4.div(square, vLargest), minimum));
  });
  const [i, value] = [f.i32(), f.f32()];
  f.for(i, 0, count, 1, () => {
    for (const [k, from] of [MEANS, SQUARES].entries()) {
      f.set(value, f32.load(i32.add(scratch, i32.mul(i, 4)), from));
      f.do(i32.store8(i32.add(codes[k], i), emitCode(f, MIDDLES + k * MIDDLES_BYTES, value, scratch)));
    }
  });
}

const NUMBERS = {
  ...{ beta1: "f32", oneMinusBeta1: "f32", beta2: "f32", oneMinusBeta2: "f32" },
  ...{ eps: "f32", stepSize: "f32", correction2: "f32", decay: "f32" },
} as const satisfies ParamTypes;

/** Returns an emitter of one AdamW step: new moments and parameter from the gradient and the old ones. */
function stepper(f: FunctionBuilder, args: { readonly [K in keyof typeof NUMBERS]: Local<"f32"> }) {
  const all = Object.keys(NUMBERS).map((name) => [
    name,
    f.v128(f32x4.splat(args[name as keyof typeof NUMBERS])),
  ]);
  const numbers: { readonly [K in keyof typeof NUMBERS]: Local<"v128"> } = Object.fromEntries(all);
  const { beta1, oneMinusBeta1, beta2, oneMinusBeta2, eps, stepSize, correction2, decay } = numbers;
  const { add, mul, div, sub, sqrt } = f32x4;
  return (gradient: Local<"v128">, { m, v, p }: Record<"m" | "v" | "p", V128>) => {
    const squared = f.v128(mul(gradient, gradient));
    const mean = f.v128(add(mul(beta1, m), mul(oneMinusBeta1, gradient)));
    const square = f.v128(add(mul(beta2, v), mul(oneMinusBeta2, squared)));
    const root = add(sqrt(mul(square, correction2)), eps);
    const value = f.v128(p);
    return { mean, square, value: sub(value, f.madd(decay, value, div(mul(stepSize, mean), root))) };
  };
}

/** A task is `rows` blocks; the numbers are those of `adamw`. */
export const adamw8 = defineKernel(
  {
    ...words("p", "mCodes", "vCodes", "mMax", "vMax", "maps", "g", "gradScale", "n", "blocks", "rows"),
    ...NUMBERS,
  } as const,
  (f, args, { task, scratch }) => {
    emitMiddles(f, args.maps, scratch);
    const factor = f.v128(f32x4.splat(1));
    f.if(args.gradScale, () => f.set(factor, v128.load32Splat(args.gradScale)));
    const step = stepper(f, args);
    const magnitude = f.v128(i32x4.splat(0x7fffffff));
    const onlyFirst = firstLane(f);
    const [mScale, vScale, mBest, vBest] = Array.from({ length: 4 }, () => f.v128());
    const vMap = f.i32(i32.add(args.maps, 4 * ENTRIES));
    const smallest = f.v128(v128.load32Splat(vMap, 4));
    const [p, g, m, v, mCodes, vCodes] = Array.from({ length: 6 }, () => f.i32());
    /** Writes new moments and parameters of a block, and finds the largest magnitudes. */
    const update = (count: Local<"i32">) =>
      forVectors(f, count, [p, g, m, v], ({ load, store, lanes }) => {
        const gradient = f.v128(f32x4.mul(load(g), factor));
        const moments = { m: f32x4.mul(load(m), mScale), v: f32x4.mul(load(v), vScale) };
        const { mean, square, value } = step(gradient, { ...moments, p: load(p) });
        store(p, value);
        for (const [pointer, moment, best] of [[m, mean, mBest] as const, [v, square, vBest] as const]) {
          store(pointer, moment);
          const size = v128.and(moment, magnitude);
          f.set(best, f32x4.pmax(best, lanes === 4 ? size : v128.and(size, onlyFirst)));
        }
      });
    forRows(f, task, { rows: args.rows, n: args.blocks }, (block) => {
      const first = f.i32(i32.mul(block, BLOCK));
      const count = f.i32(i32.min(f.i32(i32.sub(args.n, first)), BLOCK));
      for (const [pointer, start] of [[p, args.p] as const, [g, args.g] as const])
        f.set(pointer, i32.add(start, i32.mul(first, 4)));
      f.set(mCodes, i32.add(args.mCodes, first));
      f.set(vCodes, i32.add(args.vCodes, first));
      f.set(m, i32.add(scratch, MEANS));
      f.set(v, i32.add(scratch, SQUARES));
      emitDecode(f, [mCodes, args.maps, m], count);
      emitDecode(f, [vCodes, vMap, v], count);
      const [mAt, vAt] = [args.mMax, args.vMax].map((max) => f.i32(i32.add(max, i32.mul(block, 4))));
      f.set(mScale, v128.load32Splat(mAt));
      f.set(vScale, v128.load32Splat(vAt));
      for (const best of [mBest, vBest]) f.set(best, f32x4.splat(0));
      update(count);
      const largest = [f.f32(maxLanes(f, [mBest])), f.f32(maxLanes(f, [vBest]))] as const;
      f.do(f32.store(mAt, largest[0]), f32.store(vAt, largest[1]));
      emitEncode(f, { count, scratch, codes: [mCodes, vCodes], largest, smallest });
    });
  },
);
