/** Elementwise kernels over f32, and conversions to and from f16; a task is a chunk of elements. */
import { LARGEST_F16 } from "../../dtype.ts";
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { GELU } from "./activations.ts";
import { loader, toF16 } from "./f16.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf, type Function1, logOf, sigmoidOf, tanhOf } from "./math.ts";
import { forChunk } from "./tasks.ts";
import { type Elements, splat } from "./vectors.ts";

/** y = f(x). */
const unary = (make: (f: FunctionBuilder) => Function1) =>
  defineKernel(words("x", "y", "n"), (f, { x, y, n }, { task }) => {
    const apply = make(f);
    forChunk(f, task, n, [x, y], ([x, y]) => y.store(apply(x.load())));
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
  const [zero, one, minusOne] = [0, 1, -1].map((value) => splat(f, value));
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

const gelu = (form: keyof typeof GELU) =>
  unary((f) => {
    const apply = GELU[form](f);
    return (x) => apply(f.v128(x));
  });

export const geluErf = gelu("erf");
export const geluTanh = gelu("tanh");

export const siluMulBackward = defineKernel(
  words("dy", "gate", "up", "dgate", "dup", "n"),
  (f, { dy, gate, up, dgate, dup, n }, { task }) => {
    const sigmoid = sigmoidOf(f);
    const one = splat(f, 1);
    forChunk(f, task, n, [dy, gate, up, dgate, dup], ([dy, gate, up, dgate, dup]) => {
      const g = f.v128(gate.load());
      const s = f.v128(sigmoid(g));
      const d = f.v128(f32x4.mul(dy.load(), s));
      const slope = f.madd(g, f32x4.sub(one, s), one);
      const upward = f.v128(up.load()); // loaded before dgate is stored, which may overwrite up
      dgate.store(f32x4.mul(f32x4.mul(d, upward), slope));
      dup.store(f32x4.mul(d, g));
    });
  },
);

/** y = factor · x, or factor · s · x with the scalar s at address `by`. */
export const scale = defineKernel(
  { ...words("x", "y", "n", "by"), factor: "f32" } as const,
  (f, { x, y, n, factor, by }, { task }) => {
    const all = splat(f, factor);
    f.if(by, () => f.set(all, f32x4.mul(all, v128.load32Splat(by))));
    forChunk(f, task, n, [x, y], ([x, y]) => y.store(f32x4.mul(all, x.load())));
  },
);

/** y = x clamped to min .. max. */
export const clamp = defineKernel(
  { ...words("x", "y", "n"), min: "f32", max: "f32" } as const,
  (f, { x, y, n, min, max }, { task }) => {
    const [low, high] = [splat(f, min), splat(f, max)];
    forChunk(f, task, n, [x, y], ([x, y]) => y.store(f32x4.min(f32x4.max(x.load(), low), high)));
  },
);

/** y = x^times by repeated squaring, or 1 / x^times if `inverted`. */
export const powWhole = defineKernel(
  words("x", "y", "n", "times", "inverted"),
  (f, { x, y, n, times, inverted }, { task }) => {
    const one = splat(f, 1);
    const [power, square, left] = [f.v128(), f.v128(), f.i32()];
    forChunk(f, task, n, [x, y], ([x, y]) => {
      f.set(power, one);
      f.set(square, x.load());
      f.set(left, times);
      f.while(left, () => {
        f.if(i32.and(left, 1), () => f.set(power, f32x4.mul(power, square)));
        f.set(square, f32x4.mul(square, square));
        f.set(left, i32.shrU(left, 1));
      });
      f.if(inverted, () => f.set(power, f32x4.div(one, power)));
      y.store(power);
    });
  },
);

/** y = e^(exponent · log x), and 0 where x is not above 0. */
export const powFraction = defineKernel(
  { ...words("x", "y", "n"), exponent: "f32" } as const,
  (f, { x, y, n, exponent }, { task }) => {
    const [exp, log, all, zero] = [expOf(f), logOf(f), splat(f, exponent), f.v128()];
    forChunk(f, task, n, [x, y], ([x, y]) => {
      const value = f.v128(x.load());
      y.store(v128.and(exp(f32x4.mul(log(value), all)), f32x4.gt(value, zero)));
    });
  },
);

/** y = a where the mask is not 0, else b; without a or b, 0. */
export const where = defineKernel(words("mask", "a", "b", "y", "n"), (f, { mask, a, b, y, n }, { task }) => {
  const choose = (values: readonly Local<"i32">[], value: (chosen: V128, ...given: Elements[]) => V128) =>
    forChunk(f, task, n, [[mask, 1], y, ...values], ([mask, y, ...given]) =>
      y.store(value(mask.loadMask(), ...given)),
    );
  f.if(
    a,
    () =>
      f.if(
        b,
        () => choose([a, b], (chosen, a, b) => v128.bitselect(a.load(), b.load(), chosen)),
        () => choose([a], (chosen, a) => v128.and(a.load(), chosen)),
      ),
    () => choose([b], (chosen, b) => v128.andNot(b.load(), chosen)),
  );
});

export const fill = defineKernel(
  { ...words("x", "n"), value: "f32" } as const,
  (f, { x, n, value }, { task }) => {
    const all = splat(f, value);
    forChunk(f, task, n, [x], ([x]) => x.store(all));
  },
);

/** f16 to f32. Loads may reach past the last element, stores do not. */
export const widen = defineKernel(words("x", "y", "n"), (f, { x, y, n }, { task }) => {
  const load4 = loader(f, "f16");
  forChunk(f, task, n, [[x, 2], y], ([x, y]) => y.store(load4(x.pointer)));
});

/** f32 to f16; values beyond its range become infinite, or its largest number if it `saturates`. */
const narrowing = (saturates: boolean) =>
  defineKernel(words("x", "y", "n"), (f, { x, y, n }, { task }) => {
    const convert = toF16(f);
    const [largest, smallest] = [LARGEST_F16, -LARGEST_F16].map((value) => splat(f, value));
    const inRange = (value: V128) => (saturates ? f32x4.pmax(f32x4.pmin(value, largest), smallest) : value); // keeps NaN
    forChunk(f, task, n, [x, [y, 2]], ([x, y], { lanes }) =>
      f.do((lanes === 4 ? v128.store64Lane : v128.store16Lane)(y.pointer, convert(inRange(x.load())), 0)),
    );
  });

export const narrow = narrowing(false);
export const narrowSaturated = narrowing(true);
