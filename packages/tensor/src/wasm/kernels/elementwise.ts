/** Elementwise kernels over f32; a task is a chunk of elements. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { type Expr, f32, f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { loader, toHalves } from "./halves.ts";
import { defineKernel, type ParamTypes } from "./kernel.ts";
import { expOf, type Function1, logOf, sigmoidOf } from "./math.ts";
import { CHUNK, type Pointers, startChunk } from "./tasks.ts";
import { forVectors } from "./vectors.ts";

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
export const sigmoid = unary(sigmoidOf);
export const silu = unary((f) => {
  const sigmoid = sigmoidOf(f);
  return (x) => {
    const value = f.v128(x);
    return f32x4.mul(value, sigmoid(value));
  };
});

/** y = f(a, b). */
const binary = (make: (f: FunctionBuilder) => (a: V128, b: V128) => V128) =>
  defineKernel({ a: "i32", b: "i32", y: "i32", n: "i32" }, (f, { a, b, y, n }, { task }) => {
    const count = startChunk(f, task, n, { a, b, y });
    const apply = make(f);
    forVectors(f, count, [a, b, y], ({ load, store }) => store(y, apply(load(a), load(b))));
  });

export const add = binary(() => f32x4.add);
export const sub = binary(() => f32x4.sub);
export const mul = binary(() => f32x4.mul);
export const div = binary(() => f32x4.div);
export const minimum = binary(() => f32x4.min);
export const maximum = binary(() => f32x4.max);
export const siluMul = binary((f) => {
  const sigmoid = sigmoidOf(f);
  return (gate, up) => {
    const g = f.v128(gate);
    return f32x4.mul(f32x4.mul(g, sigmoid(g)), up);
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
      const upward = f.v128(load(up)); // before dgate is written: it may lie where up did
      store(dgate, f32x4.mul(f32x4.mul(d, upward), slope));
      store(dup, f32x4.mul(d, g));
    });
  },
);

/** y = factor · x; the factor is multiplied by what `by` points to, unless that is 0. */
export const scale = defineKernel(
  { x: "i32", y: "i32", n: "i32", factor: "f32", by: "i32" },
  (f, { x, y, n, factor, by }, { task }) => {
    const count = startChunk(f, task, n, { x, y });
    const all = splat(f, factor);
    f.if(by, () => f.set(all, f32x4.mul(all, v128.load32Splat(by))));
    forVectors(f, count, [x, y], ({ load, store }) => store(y, f32x4.mul(all, load(x))));
  },
);

export const fill = defineKernel({ x: "i32", n: "i32", value: "f32" }, (f, { x, n, value }, { task }) => {
  const count = startChunk(f, task, n, { x });
  const all = splat(f, value);
  forVectors(f, count, [x], ({ store }) => store(x, all));
});

/** Moves a task's chunk between halves and floats: four at a time, then one by one. */
function forHalves(
  f: FunctionBuilder,
  task: Expr<"i32">,
  n: Local<"i32">,
  { halves, floats }: Pointers<"halves" | "floats">,
  move: (lanes: 4 | 1) => void,
): void {
  const first = f.i32(i32.mul(task, CHUNK));
  f.set(halves, i32.add(halves, i32.mul(first, 2)));
  f.set(floats, i32.add(floats, i32.mul(first, 4)));
  const left = f.i32(i32.min(f.i32(i32.sub(n, first)), CHUNK));
  for (const lanes of [4, 1] as const) {
    f.while(i32.geS(left, lanes), () => {
      move(lanes);
      f.set(halves, i32.add(halves, 2 * lanes));
      f.set(floats, i32.add(floats, 4 * lanes));
      f.set(left, i32.sub(left, lanes));
    });
  }
}

/** Halves to f32. Loads reach past the last element, stores do not. */
export const widen = defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
  const load4 = loader(f, "f16");
  forHalves(f, task, n, { halves: x, floats: y }, (lanes) =>
    f.do(lanes === 4 ? v128.store(y, load4(x)) : v128.store32Lane(y, load4(x), 0)),
  );
});

/** f32 to halves. */
export const narrow = defineKernel({ x: "i32", y: "i32", n: "i32" }, (f, { x, y, n }, { task }) => {
  const convert = toHalves(f);
  forHalves(f, task, n, { halves: y, floats: x }, (lanes) =>
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

/** p and m in place, as PyTorch: d = g · gradScale + weightDecay · p. */
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
    // What m and d count in the step: momentum and 1 with Nesterov's, else 1 and 0.
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
