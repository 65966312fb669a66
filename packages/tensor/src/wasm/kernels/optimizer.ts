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
import { forChunk, forRows, wordAt } from "./tasks.ts";
import { forVectors, maxLanes, setAll, splat } from "./vectors.ts";

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

/** middles[c] = (map[c] + map[c + 1]) / 2 for the 255 pairs, and infinity after them. */
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
    f.do(f32.store(to, Number.POSITIVE_INFINITY));
  }
}

/** Whether the midpoint after a code lies below a value: then the value's code is a larger one. */
const isAbove = (value: F32, map: number, scratch: Local<"i32">, code: Local<"i32">): Expr<"i32"> =>
  f32.gt(value, f32.load(i32.add(scratch, i32.shl(code, 2)), MIDDLES + map * MIDDLES_BYTES));

/** The codes of the lower ends of all buckets, found in ascending order. */
function emitBucketCodes(f: FunctionBuilder, scratch: Local<"i32">): void {
  const [bucket, code, lower] = [f.i32(), f.i32(), f.f32()];
  const magnitude = (of: I32) => f32.reinterpret(i32.shl(i32.add(of, FIRST_BUCKET), BUCKET_SHIFT));
  const store = (map: number, at: number) => {
    f.while(isAbove(lower, map, scratch, code), () => f.set(code, i32.add(code, 1)));
    f.do(i32.store8(i32.add(scratch, bucket), code, BUCKET_CODES + map * MAP_BUCKETS + at));
  };
  for (const map of [0, 1]) {
    f.set(code, 0);
    f.set(bucket, BUCKETS - 1);
    f.while(i32.geS(bucket, 0), () => {
      f.set(lower, f32.sub(0, magnitude(i32.add(bucket, 1))));
      store(map, BUCKETS);
      f.set(bucket, i32.sub(bucket, 1));
    });
    f.set(code, 0);
    f.for(bucket, 0, BUCKETS, 1, () => {
      f.set(lower, f32.select(bucket, magnitude(bucket), 0));
      store(map, 0);
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
  const [mTo, vTo] = codes.map((to) => f.i32(to));
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
  forVectors(f, count, [m, v, [mTo, 1], [vTo, 1]], ({ load, lanes }) => {
    f.set(scaled, f32x4.div(load(m), mLargest));
    store(mTo, 0, lanes);
    const square = f.v128(load(v));
    const minimum = v128.and(f32x4.gt(square, zero), smallest); // a v above 0 must not become 0
    f.set(scaled, f32x4.max(f32x4.div(square, vLargest), minimum));
    store(vTo, 1, lanes);
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
