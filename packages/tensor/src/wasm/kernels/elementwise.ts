/** Elementwise kernels over f32, conversions to and from f16, and optimizer steps; a task is a chunk of elements. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { loader, toF16 } from "./f16.ts";
import { defineKernel, type ParamTypes, words } from "./kernel.ts";
import { expOf, type Function1, logOf, sigmoidOf, tanhOf } from "./math.ts";
import { CHUNK, type Pointers, startChunk } from "./tasks.ts";
import { type Access, forVectors } from "./vectors.ts";

const splat = (f: FunctionBuilder, value: Expr<"f32">) => f.v128(f32x4.splat(value));

/** y = f(x). */
const unary = (make: (f: FunctionBuilder) => Function1) =>
  defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const apply = make(f);
    forVectors(f, count, [x, y], ({ load, store }) => store(y, apply(load(x))));
  });

export const neg = unary(() => f32x4.neg);
export const abs = unary(() => f32x4.abs);
export const relu = unary((f) => {
  const zero = f.v128();
  return (x) => f32x4.max(x, zero);
});
export const sqrt = unary((f) => {
  const zero = f.v128();
  return (x) => f32x4.sqrt(f32x4.max(x, zero));
});
export const exp = unary(expOf);
export const log = unary(logOf);
export const sign = unary((f) => {
  const [zero, one, minusOne] = [0, 1, -1].map((value) => f.v128(f32x4.splat(value)));
  return (x) => {
    const value = f.v128(x);
    return v128.or(v128.and(f32x4.gt(value, zero), one), v128.and(f32x4.lt(value, zero), minusOne));
  };
});
export const tanh = unary(tanhOf);
export const sigmoid = unary(sigmoidOf);
export const silu = unary((f) => {
  const sigmoid = sigmoidOf(f);
  return (x) => {
    const value = f.v128(x);
    return f32x4.mul(value, sigmoid(value));
  };
});

export const siluMulBackward = defineKernel(
  { dy: "i32", gate: "i32", up: "i32", dgate: "i32", dup: "i32", n: "i32" },
  (f, { n, ...pointers }, { task }) => {
    const { dy, gate, up, dgate, dup } = pointers;
    const count = startChunk(f, task, n, pointers);
    const sigmoid = sigmoidOf(f);
    const one = f.v128(f32x4.splat(1));
    forVectors(f, count, Object.values(pointers), ({ load, store }) => {
      const g = f.v128(load(gate));
      const s = f.v128(sigmoid(g));
      const d = f.v128(f32x4.mul(load(dy), s));
      const slope = f.madd(g, f32x4.sub(one, s), one);
      const upward = f.v128(load(up)); // loaded before dgate is stored, which may overwrite up
      store(dgate, f32x4.mul(f32x4.mul(d, upward), slope));
      store(dup, f32x4.mul(d, g));
    });
  },
);

/** y = factor · x, or factor · s · x with the scalar s at address `by`. */
export const scale = defineKernel(
  { x: "i32", y: "i32", n: "i32", factor: "f32", by: "i32" },
  (f, { x, y, n, factor, by }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const all = splat(f, factor);
    f.if(by, () => f.set(all, f32x4.mul(all, v128.load32Splat(by))));
    forVectors(f, count, [x, y], ({ load, store }) => store(y, f32x4.mul(all, load(x))));
  },
);

/** y = x clamped to min .. max. */
export const clamp = defineKernel(
  { x: "i32", y: "i32", n: "i32", min: "f32", max: "f32" },
  (f, { x, y, n, min, max }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const [low, high] = [splat(f, min), splat(f, max)];
    forVectors(f, count, [x, y], ({ load, store }) => store(y, f32x4.min(f32x4.max(load(x), low), high)));
  },
);

/** y = x^times by repeated squaring, or 1 / x^times if `inverted`. */
export const powWhole = defineKernel(
  words("x", "y", "n", "times", "inverted"),
  (f, { x, y, n, times, inverted }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const one = f.v128(f32x4.splat(1));
    const [power, square, left] = [f.v128(), f.v128(), f.i32()];
    forVectors(f, count, [x, y], ({ load, store }) => {
      f.set(power, one);
      f.set(square, load(x));
      f.set(left, times);
      f.while(left, () => {
        f.if(i32.and(left, 1), () => f.set(power, f32x4.mul(power, square)));
        f.set(square, f32x4.mul(square, square));
        f.set(left, i32.shrU(left, 1));
      });
      f.if(inverted, () => f.set(power, f32x4.div(one, power)));
      store(y, power);
    });
  },
);

/** y = e^(exponent · log x), and 0 where x is not above 0. */
export const powFraction = defineKernel(
  { x: "i32", y: "i32", n: "i32", exponent: "f32" },
  (f, { x, y, n, exponent }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const [exp, log, all, zero] = [expOf(f), logOf(f), splat(f, exponent), f.v128()];
    forVectors(f, count, [x, y], ({ load, store }) => {
      const value = f.v128(load(x));
      store(y, v128.and(exp(f32x4.mul(log(value), all)), f32x4.gt(value, zero)));
    });
  },
);

/** y = a where the mask is not 0, else b; without a or b, 0. */
export const where = defineKernel(words("mask", "a", "b", "y", "n"), (f, { mask, a, b, y, n }, { task }) => {
  const first = f.i32(i32.mul(task, CHUNK));
  const [hasA, hasB] = [f.i32(a), f.i32(b)];
  const count = startChunk(f, task, n, { a, b, y });
  f.set(mask, i32.add(mask, first));
  const choose = (value: (access: Access, chosen: V128) => V128, ...pointers: Local<"i32">[]) =>
    forVectors(
      f,
      count,
      [...pointers, y],
      (access) => access.store(y, value(access, access.loadMask(mask))),
      1,
      [mask],
    );
  f.if(
    hasA,
    () =>
      f.if(
        hasB,
        () => choose(({ load }, chosen) => v128.bitselect(load(a), load(b), chosen), a, b),
        () => choose(({ load }, chosen) => v128.and(load(a), chosen), a),
      ),
    () => choose(({ load }, chosen) => v128.andNot(load(b), chosen), b),
  );
});

export const fill = defineKernel({ x: "i32", n: "i32", value: "f32" }, (f, { x, n, value }, { task }) => {
  const count = startChunk(f, task, n, { x });
  const all = splat(f, value);
  forVectors(f, count, [x], ({ store }) => store(x, all));
});

/** Runs `move` over a task's chunk of f16 and f32 elements: four at a time, then one by one. */
function forF16(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  { f16, f32: floats }: Pointers<"f16" | "f32">,
  move: (lanes: 4 | 1) => void,
): void {
  const first = f.i32(i32.mul(task, CHUNK));
  f.set(f16, i32.add(f16, i32.mul(first, 2)));
  f.set(floats, i32.add(floats, i32.mul(first, 4)));
  const left = f.i32(i32.min(f.i32(i32.sub(n, first)), CHUNK));
  for (const lanes of [4, 1] as const) {
    f.while(i32.geS(left, lanes), () => {
      move(lanes);
      f.set(f16, i32.add(f16, 2 * lanes));
      f.set(floats, i32.add(floats, 4 * lanes));
      f.set(left, i32.sub(left, lanes));
    });
  }
}

/** f16 to f32. Loads may reach past the last element, stores do not. */
export const widen = defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
  const load4 = loader(f, "f16");
  forF16(f, task, n, { f16: x, f32: y }, (lanes) =>
    f.do(lanes === 4 ? v128.store(y, load4(x)) : v128.store32Lane(y, load4(x), 0)),
  );
});

/** f32 to f16. */
export const narrow = defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
  const convert = toF16(f);
  forF16(f, task, n, { f16: y, f32: x }, (lanes) =>
    f.do(
      lanes === 4
        ? v128.store64Lane(y, convert(v128.load(x)), 0)
        : v128.store16Lane(y, convert(v128.load32Zero(x)), 0),
    ),
  );
});

const ADAMW = {
  ...{ p: "i32", m: "i32", v: "i32", g: "i32", n: "i32", gradScale: "i32", decay: "f32" },
  ...{ beta1: "f32", oneMinusBeta1: "f32", beta2: "f32", oneMinusBeta2: "f32" },
  ...{ eps: "f32", stepSize: "f32", correction2: "f32" },
} as const satisfies ParamTypes;

/** p, m and v in place; stepSize = lr / (1 - beta1^step), correction2 = 1 / (1 - beta2^step), decay = lr · weightDecay. */
export const adamw = defineKernel(ADAMW, (f, { p, m, v, g, n, gradScale, ...numbers }, { task }) => {
  const count = startChunk(f, task, n, { p, m, v, g });
  const factor = f.v128(f32x4.splat(1));
  f.if(gradScale, () => f.set(factor, v128.load32Splat(gradScale)));
  const [beta1, other1, beta2, other2] = [
    numbers.beta1,
    numbers.oneMinusBeta1,
    numbers.beta2,
    numbers.oneMinusBeta2,
  ].map((number) => splat(f, number));
  const [eps, stepSize, correction, decay] = [
    numbers.eps,
    numbers.stepSize,
    numbers.correction2,
    numbers.decay,
  ].map((number) => splat(f, number));
  forVectors(f, count, [p, m, v, g], ({ load, store }) => {
    const gradient = f.v128(f32x4.mul(load(g), factor));
    const mean = f.v128(f.madd(other1, gradient, f32x4.mul(beta1, load(m))));
    const square = f.v128(f.madd(f32x4.mul(other2, gradient), gradient, f32x4.mul(beta2, load(v))));
    const root = f32x4.add(f32x4.sqrt(f32x4.mul(square, correction)), eps);
    const value = f.v128(load(p));
    const change = f.v128(f.madd(decay, value, f32x4.div(f32x4.mul(stepSize, mean), root)));
    store(m, mean);
    store(v, square);
    store(p, f32x4.sub(value, change));
  });
});

/** p and m in place, as in PyTorch: d = g · gradScale + weightDecay · p, m = momentum · m + d, p -= lr · (m, or d + momentum · m). */
export const sgd = defineKernel(
  {
    ...{ p: "i32", m: "i32", g: "i32", n: "i32", gradScale: "i32", nesterov: "i32" },
    ...{ lr: "f32", momentum: "f32", weightDecay: "f32" },
  } as const,
  (f, { p, m, g, n, gradScale, nesterov, ...numbers }, { task }) => {
    const count = startChunk(f, task, n, { p, m, g });
    const factor = f.v128(f32x4.splat(1));
    f.if(gradScale, () => f.set(factor, v128.load32Splat(gradScale)));
    const [lr, momentum, weightDecay] = [numbers.lr, numbers.momentum, numbers.weightDecay].map((number) =>
      splat(f, number),
    );
    // The step is lr · (ofD · d + ofM · m): with Nesterov momentum ofD = 1 and ofM = momentum, else 0 and 1.
    const [ofM, ofD] = [
      splat(f, f32.select(nesterov, numbers.momentum, 1)),
      splat(f, f32.select(nesterov, 1, 0)),
    ];
    forVectors(f, count, [p, m, g], ({ load, store }) => {
      const value = f.v128(load(p));
      const d = f.v128(f.madd(load(g), factor, f32x4.mul(weightDecay, value)));
      const mean = f.v128(f.madd(momentum, load(m), d));
      store(m, mean);
      store(p, f32x4.sub(value, f32x4.mul(lr, f.madd(ofD, d, f32x4.mul(ofM, mean)))));
    });
  },
);
