/**
 * Optimizer steps, in place. In AdamW with 8-bit moments the moments are computed without fused multiply-add, so that their codes
 * agree with the reference to the bit:
 *
 *     middles = midpoints of neighbouring entries of both maps
 *     for block of 256 elements of the task:
 *       m, v = map[code] · largest of the block
 *       AdamW step: new m, v and p; new largest |m| and |v|
 *       code = how many midpoints lie below m / largest (v / largest), by a binary search without branches
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { defineKernel, type ParamTypes, words } from "./kernel.ts";
import { forChunk, forRows, wordAt } from "./tasks.ts";
import { forVectors, maxLanes, setAll, splat } from "./vectors.ts";

/** Elements of a block of moments, and entries of a map. */
const BLOCK = 256;
const ENTRIES = 256;
/** Offsets in the thread's scratch: the moments of a block, then the midpoints of both maps. */
const MOMENT_BYTES = 4 * BLOCK;
const MIDDLES_BYTES = 4 * ENTRIES;
const [MEANS, SQUARES, MIDDLES] = [0, MOMENT_BYTES, 2 * MOMENT_BYTES];
/** Replaces a largest magnitude of 0 as a divisor. */
const MIN_DIVISOR = 1e-37;

/** The gradient's factor: the scalar at an address, or 1. */
function gradFactor(f: FunctionBuilder, gradScale: Local<"i32">): Local<"v128"> {
  const factor = splat(f, 1);
  f.if(gradScale, () => f.set(factor, v128.load32Splat(gradScale)));
  return factor;
}

/** stepSize = lr / (1 - beta1^step), correction2 = 1 / (1 - beta2^step), decay = lr · weightDecay. */
const ADAMW = {
  ...{ beta1: "f32", oneMinusBeta1: "f32", beta2: "f32", oneMinusBeta2: "f32" },
  ...{ eps: "f32", stepSize: "f32", correction2: "f32", decay: "f32" },
} as const satisfies ParamTypes;

type AdamwNumbers = Readonly<Record<keyof typeof ADAMW, Local<"v128">>>;

const adamwNumbers = (
  f: FunctionBuilder,
  args: Readonly<Record<keyof typeof ADAMW, Local<"f32">>>,
): AdamwNumbers =>
  Object.fromEntries(
    Object.keys(ADAMW).map((name) => [name, splat(f, args[name as keyof typeof ADAMW])]),
  ) as AdamwNumbers;

/** The new parameter, from the old one and the new moments. */
function adamwValue(
  f: FunctionBuilder,
  { eps, stepSize, correction2, decay }: AdamwNumbers,
  { p, mean, square }: { p: V128; mean: Local<"v128">; square: Local<"v128"> },
): V128 {
  const root = f32x4.add(f32x4.sqrt(f32x4.mul(square, correction2)), eps);
  const value = f.v128(p);
  return f32x4.sub(value, f.madd(decay, value, f32x4.div(f32x4.mul(stepSize, mean), root)));
}

/** A task is a chunk of elements. */
export const adamw = defineKernel(
  { ...words("p", "m", "v", "g", "n", "gradScale"), ...ADAMW } as const,
  (f, { p, m, v, g, n, gradScale, ...args }, { task }) => {
    const factor = gradFactor(f, gradScale);
    const numbers = adamwNumbers(f, args);
    const { beta1, oneMinusBeta1, beta2, oneMinusBeta2 } = numbers;
    forChunk(f, task, n, [p, m, v, g], ({ load, store }) => {
      const gradient = f.v128(f32x4.mul(load(g), factor));
      const mean = f.v128(f.madd(oneMinusBeta1, gradient, f32x4.mul(beta1, load(m))));
      const square = f.v128(f.madd(f32x4.mul(oneMinusBeta2, gradient), gradient, f32x4.mul(beta2, load(v))));
      store(p, adamwValue(f, numbers, { p: load(p), mean, square }));
      store(m, mean);
      store(v, square);
    });
  },
);

/** As in PyTorch: d = g · gradScale + weightDecay · p, m = momentum · m + d, p -= lr · (m, or d + momentum · m). A task is a chunk. */
export const sgd = defineKernel(
  {
    ...words("p", "m", "g", "n", "gradScale", "nesterov"),
    ...{ lr: "f32", momentum: "f32", weightDecay: "f32" },
  } as const,
  (f, { p, m, g, n, gradScale, nesterov, ...numbers }, { task }) => {
    const factor = gradFactor(f, gradScale);
    const [lr, momentum, weightDecay] = [numbers.lr, numbers.momentum, numbers.weightDecay].map((number) =>
      splat(f, number),
    );
    // The step is lr · (ofD · d + ofM · m): with Nesterov momentum ofD = 1 and ofM = momentum, else 0 and 1.
    const ofM = splat(f, f32.select(nesterov, numbers.momentum, 1));
    const ofD = splat(f, f32.select(nesterov, 1, 0));
    forChunk(f, task, n, [p, m, g], ({ load, store }) => {
      const value = f.v128(load(p));
      const d = f.v128(f.madd(load(g), factor, f32x4.mul(weightDecay, value)));
      const mean = f.v128(f.madd(momentum, load(m), d));
      store(m, mean);
      store(p, f32x4.sub(value, f32x4.mul(lr, f.madd(ofD, d, f32x4.mul(ofM, mean)))));
    });
  },
);

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
  const [mLargest, vLargest] = largest.map((value) => splat(f, f32.max(value, MIN_DIVISOR)));
  const zero = splat(f, 0);
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

/** A task is `rows` blocks. */
export const adamw8 = defineKernel(
  {
    ...words("p", "mCodes", "vCodes", "mMax", "vMax", "maps", "g", "gradScale", "n", "blocks", "rows"),
    ...ADAMW,
  } as const,
  (f, args, { task, scratch }) => {
    emitMiddles(f, args.maps, scratch);
    const factor = gradFactor(f, args.gradScale);
    const numbers = adamwNumbers(f, args);
    const { beta1, oneMinusBeta1, beta2, oneMinusBeta2 } = numbers;
    const [mScale, vScale, mBest, vBest] = Array.from({ length: 4 }, () => f.v128());
    const vMap = f.i32(i32.add(args.maps, 4 * ENTRIES));
    const smallest = f.v128(v128.load32Splat(vMap, 4));
    const [p, g, m, v, mCodes, vCodes] = Array.from({ length: 6 }, () => f.i32());
    const { add, mul } = f32x4;
    /** Writes new moments and parameters of a block, and finds the largest magnitudes. */
    const update = (count: Local<"i32">) =>
      forVectors(f, count, [p, g, m, v], ({ load, store }) => {
        const gradient = f.v128(mul(load(g), factor));
        const squared = f.v128(mul(gradient, gradient));
        const mean = f.v128(add(mul(beta1, mul(load(m), mScale)), mul(oneMinusBeta1, gradient)));
        const square = f.v128(add(mul(beta2, mul(load(v), vScale)), mul(oneMinusBeta2, squared)));
        store(p, adamwValue(f, numbers, { p: load(p), mean, square }));
        store(m, mean);
        store(v, square);
        f.set(mBest, f32x4.pmax(mBest, f32x4.abs(mean)));
        f.set(vBest, f32x4.pmax(vBest, f32x4.abs(square)));
      });
    forRows(f, task, { rows: args.rows, n: args.blocks }, (block) => {
      const first = f.i32(i32.mul(block, BLOCK));
      const count = f.i32(i32.min(f.i32(i32.sub(args.n, first)), BLOCK));
      f.set(p, wordAt(args.p, first));
      f.set(g, wordAt(args.g, first));
      f.set(mCodes, i32.add(args.mCodes, first));
      f.set(vCodes, i32.add(args.vCodes, first));
      f.set(m, i32.add(scratch, MEANS));
      f.set(v, i32.add(scratch, SQUARES));
      emitDecode(f, [mCodes, args.maps, m], count);
      emitDecode(f, [vCodes, vMap, v], count);
      const [mAt, vAt] = [args.mMax, args.vMax].map((max) => f.i32(wordAt(max, block)));
      f.set(mScale, v128.load32Splat(mAt));
      f.set(vScale, v128.load32Splat(vAt));
      setAll(f, [mBest, vBest], f32x4.splat(0));
      update(count);
      const largest = [f.f32(maxLanes(f, [mBest])), f.f32(maxLanes(f, [vBest]))] as const;
      f.do(f32.store(mAt, largest[0]), f32.store(vAt, largest[1]));
      emitEncode(f, { count, scratch, codes: [mCodes, vCodes], largest, smallest });
    });
  },
);
