/**
 * Optimizer steps, in place. In AdamW with 8-bit moments the moments are computed without fused multiply-add, so that their codes
 * agree with the reference to the bit:
 *
 *     middles = midpoints of neighbouring entries of both maps
 *     codes of buckets = how many midpoints lie below all floats that share sign, exponent and 6 bits of the mantissa
 *     for block of 256 elements of the task:
 *       m, v = map[code] · largest of the block
 *       AdamW step: new m, v and p; new largest |m| and |v|
 *       code = how many midpoints lie below m / largest (v / largest): from that of the bucket on, upwards
 *
 * Of the usual maps a bucket has at most one midpoint, or two between 0.5 and 1.
 */
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
import { defineKernel, type ParamTypes, words } from "./kernel.ts";
import { forChunk, forRows } from "./tasks.ts";
import { at, type Body, forVectors, maxLanes, setAll, splat } from "./vectors.ts";

/** Elements of a block of moments, and entries of a map. */
const BLOCK = 256;
const ENTRIES = 256;
/**
 * A bucket is the top bits of a float, its sign apart. Buckets end at that of 1, the largest magnitude of what is encoded; the first one has
 * all magnitudes below 2^-22, which is less than any midpoint of the usual maps but 0.
 */
const BUCKET_SHIFT = 17;
const FIRST_BUCKET = (127 - 22) << (23 - BUCKET_SHIFT);
const BUCKETS = (127 << (23 - BUCKET_SHIFT)) - FIRST_BUCKET + 1;
/** Offsets in the thread's scratch: the moments of a block, then the midpoints of both maps, then codes of buckets. */
const MOMENT_BYTES = 4 * BLOCK;
const MIDDLES_BYTES = 4 * ENTRIES;
const [MEANS, SQUARES, MIDDLES] = [0, MOMENT_BYTES, 2 * MOMENT_BYTES];
const BUCKET_CODES = MIDDLES + 2 * MIDDLES_BYTES;
/** Of a map: buckets of positive numbers, then of negative ones. */
const MAP_BUCKETS = 2 * BUCKETS;
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
  beta1: "f32",
  oneMinusBeta1: "f32",
  beta2: "f32",
  oneMinusBeta2: "f32",
  eps: "f32",
  stepSize: "f32",
  correction2: "f32",
  decay: "f32",
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
    forChunk(f, task, n, [p, m, v, g], ([p, m, v, g]) => {
      const gradient = f.v128(f32x4.mul(g.load(), factor));
      const mean = f.v128(f.madd(oneMinusBeta1, gradient, f32x4.mul(beta1, m.load())));
      const square = f.v128(f.madd(f32x4.mul(oneMinusBeta2, gradient), gradient, f32x4.mul(beta2, v.load())));
      p.store(adamwValue(f, numbers, { p: p.load(), mean, square }));
      m.store(mean);
      v.store(square);
    });
  },
);

/** As in PyTorch: d = g · gradScale + weightDecay · p, m = momentum · m + d, p -= lr · (m, or d + momentum · m). A task is a chunk. */
export const sgd = defineKernel(
  {
    ...words("p", "m", "g", "n", "gradScale", "nesterov"),
    lr: "f32",
    momentum: "f32",
    weightDecay: "f32",
  } as const,
  (f, { p, m, g, n, gradScale, nesterov, ...numbers }, { task }) => {
    const factor = gradFactor(f, gradScale);
    const [lr, momentum, weightDecay] = [numbers.lr, numbers.momentum, numbers.weightDecay].map((number) =>
      splat(f, number),
    );
    // The step is lr · (ofD · d + ofM · m): with Nesterov momentum ofD = 1 and ofM = momentum, else 0 and 1.
    const ofM = splat(f, f32.select(nesterov, numbers.momentum, 1));
    const ofD = splat(f, f32.select(nesterov, 1, 0));
    forChunk(f, task, n, [p, m, g], ([p, m, g]) => {
      const value = f.v128(p.load());
      const d = f.v128(f.madd(g.load(), factor, f32x4.mul(weightDecay, value)));
      const mean = f.v128(f.madd(momentum, m.load(), d));
      m.store(mean);
      p.store(f32x4.sub(value, f32x4.mul(lr, f.madd(ofD, d, f32x4.mul(ofM, mean)))));
    });
  },
);

/** middles[c] = (map[c] + map[c + 1]) / 2 for the 255 pairs, and infinity after them. */
function emitMiddles(f: FunctionBuilder, maps: Local<"i32">, scratch: Local<"i32">): void {
  for (const map of [0, 1]) {
    const middles = MIDDLES + map * MIDDLES_BYTES;
    f.for(0, 4 * (ENTRIES - 1), 4, (byte) => {
      const entry = f.i32(i32.add(maps, byte));
      const [lower, upper] = [0, 4].map((offset) => f32.load(entry, map * 4 * ENTRIES + offset));
      f.do(f32.store(i32.add(scratch, byte), f32.mul(f32.add(lower, upper), 0.5), middles));
    });
    f.do(f32.store(scratch, Number.POSITIVE_INFINITY, middles + 4 * (ENTRIES - 1)));
  }
}

/** Whether the midpoint after a code lies below a value: then the value's code is a larger one. */
const isAbove = (value: F32, map: number, scratch: Local<"i32">, code: Local<"i32">): Expr<"i32"> =>
  f32.gt(value, f32.load(at(scratch, code), MIDDLES + map * MIDDLES_BYTES));

/** The codes of the lower ends of all buckets, found in ascending order. */
function emitBucketCodes(f: FunctionBuilder, scratch: Local<"i32">): void {
  const [code, lower] = [f.i32(), f.f32()];
  const magnitude = (of: I32) => f32.reinterpret(i32.shl(i32.add(of, FIRST_BUCKET), BUCKET_SHIFT));
  const store = (map: number, bucket: Local<"i32">, offset: number) => {
    f.while(isAbove(lower, map, scratch, code), () => f.set(code, i32.add(code, 1)));
    f.do(i32.store8(i32.add(scratch, bucket), code, BUCKET_CODES + map * MAP_BUCKETS + offset));
  };
  for (const map of [0, 1]) {
    f.set(code, 0);
    f.for(0, BUCKETS, 1, (i) => {
      const bucket = f.i32(i32.sub(BUCKETS - 1, i));
      f.set(lower, f32.sub(0, magnitude(i32.add(bucket, 1))));
      store(map, bucket, BUCKETS);
    });
    f.set(code, 0);
    f.for(0, BUCKETS, 1, (bucket) => {
      f.set(lower, f32.select(bucket, magnitude(bucket), 0));
      store(map, bucket, 0);
    });
  }
}

/** The buckets of four values, as indices into the codes of a map. */
const bucketsOf = (values: Local<"v128">): V128 => {
  const bits = i32x4.sub(i32x4.shrU(f32x4.abs(values), BUCKET_SHIFT), i32x4.splat(FIRST_BUCKET));
  const inRange = i32x4.minS(i32x4.maxS(bits, i32x4.splat(0)), i32x4.splat(BUCKETS - 1));
  return i32x4.add(inRange, v128.and(i32x4.shrS(values, 31), i32x4.splat(BUCKETS)));
};

/** values[i] = map[codes[i]] for the elements of a block. */
function emitDecode(
  f: FunctionBuilder,
  [codes, map, values]: readonly [Local<"i32">, Local<"i32">, Local<"i32">],
  count: Local<"i32">,
): void {
  f.for(0, count, 1, (i) => f.do(i32.store(at(values, i), i32.load(at(map, i32.load8U(i32.add(codes, i)))))));
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
  const [code, value] = [f.i32(), f.f32()];
  const [scaled, buckets] = [f.v128(), f.v128()];
  /** Stores the codes of `scaled`. */
  const store = (to: Local<"i32">, map: number, lanes: number) => {
    f.set(buckets, bucketsOf(scaled));
    for (let lane = 0; lane < lanes; lane++) {
      f.set(value, f32x4.lane(scaled, lane));
      f.set(code, i32.load8U(i32.add(scratch, i32x4.lane(buckets, lane)), BUCKET_CODES + map * MAP_BUCKETS));
      f.set(code, i32.add(code, isAbove(value, map, scratch, code))); // without a branch, which would be unpredictable
      f.while(isAbove(value, map, scratch, code), () => f.set(code, i32.add(code, 1)));
      f.do(i32.store8(to, code, lane));
    }
  };
  forVectors(f, count, [m, v, [codes[0], 1], [codes[1], 1]], ([m, v, mTo, vTo], { lanes }) => {
    f.set(scaled, f32x4.div(m.load(), mLargest));
    store(mTo.pointer, 0, lanes);
    const square = f.v128(v.load());
    const minimum = v128.and(f32x4.gt(square, zero), smallest); // a v above 0 must not become 0
    f.set(scaled, f32x4.max(f32x4.div(square, vLargest), minimum));
    store(vTo.pointer, 1, lanes);
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
    emitBucketCodes(f, scratch);
    const factor = gradFactor(f, args.gradScale);
    const numbers = adamwNumbers(f, args);
    const { beta1, oneMinusBeta1, beta2, oneMinusBeta2 } = numbers;
    const [mScale, vScale, mBest, vBest] = Array.from({ length: 4 }, () => f.v128());
    const vMap = f.i32(i32.add(args.maps, 4 * ENTRIES));
    const smallest = f.v128(v128.load32Splat(vMap, 4));
    const [m, v] = [MEANS, SQUARES].map((offset) => f.i32(i32.add(scratch, offset)));
    const { add, mul } = f32x4;
    /** Writes new moments and parameters of a block, and finds the largest magnitudes. */
    const update: Body = ([p, g, m, v]) => {
      const gradient = f.v128(mul(g.load(), factor));
      const squared = f.v128(mul(gradient, gradient));
      const mean = f.v128(add(mul(beta1, mul(m.load(), mScale)), mul(oneMinusBeta1, gradient)));
      const square = f.v128(add(mul(beta2, mul(v.load(), vScale)), mul(oneMinusBeta2, squared)));
      p.store(adamwValue(f, numbers, { p: p.load(), mean, square }));
      m.store(mean);
      v.store(square);
      f.set(mBest, f32x4.pmax(mBest, f32x4.abs(mean)));
      f.set(vBest, f32x4.pmax(vBest, f32x4.abs(square)));
    };
    forRows(f, task, { rows: args.rows, n: args.blocks }, (block) => {
      const first = f.i32(i32.mul(block, BLOCK));
      const count = f.i32(i32.min(f.i32(i32.sub(args.n, first)), BLOCK));
      const mCodes = f.i32(i32.add(args.mCodes, first));
      const vCodes = f.i32(i32.add(args.vCodes, first));
      emitDecode(f, [mCodes, args.maps, m], count);
      emitDecode(f, [vCodes, vMap, v], count);
      const [mAt, vAt] = [args.mMax, args.vMax].map((max) => f.i32(at(max, block)));
      f.set(mScale, v128.load32Splat(mAt));
      f.set(vScale, v128.load32Splat(vAt));
      setAll(f, [mBest, vBest], f32x4.splat(0));
      forVectors(f, count, [at(args.p, first), at(args.g, first), m, v], update);
      const largest = [f.f32(maxLanes(f, [mBest])), f.f32(maxLanes(f, [vBest]))] as const;
      f.do(f32.store(mAt, largest[0]), f32.store(vAt, largest[1]));
      emitEncode(f, { count, scratch, codes: [mCodes, vCodes], largest, smallest });
    });
  },
);
