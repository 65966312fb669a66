/** Emitters of gelu and its derivative, in both forms of the op. Constants are set where an emitter is made: before a loop. */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, type V128 } from "../assembler/instructions.ts";
import { normalOf, tanhOf } from "./math.ts";
import { splat } from "./vectors.ts";

const SLOPE = Math.sqrt(2 / Math.PI);
const CUBE = 0.044715;
/** Past this |x| the tanh is ±1 in float32, so a larger x counts as this in its argument: its cube would overflow. */
const FAR = 20;
/** Past this |x|, x · Φ(x) and x · φ(x) are 0 on the negative side. */
const TAIL = 13;

const splats = (f: FunctionBuilder, ...values: number[]) => values.map((value) => splat(f, value));

/** The argument v, clamped to ±20, and tanh(√(2/π) (v + 0.044715 v³)). */
function innerTanh(f: FunctionBuilder) {
  const tanh = tanhOf(f);
  const [far, minusFar, cube, slope, one] = splats(f, FAR, -FAR, CUBE, SLOPE, 1);
  return (x: Local<"v128">) => {
    const v = f.v128(f32x4.max(f32x4.min(x, far), minusFar));
    const square = f.v128(f32x4.mul(v, v));
    const inner = f32x4.mul(f32x4.mul(v, slope), f.madd(square, cube, one));
    return { v, square, tanh: f.v128(tanh(inner)) };
  };
}

type Make = (f: FunctionBuilder) => (x: Local<"v128">) => V128;

/** gelu(x). */
export const GELU: Readonly<Record<"erf" | "tanh", Make>> = {
  erf: (f) => {
    const [normal, [min]] = [normalOf(f), splats(f, -TAIL)];
    return (x) => f32x4.mul(f32x4.max(x, min), normal(x).cdf);
  },
  tanh: (f) => {
    const [inner, [half, one]] = [innerTanh(f), splats(f, 0.5, 1)];
    return (x) => f32x4.mul(f32x4.mul(x, half), f32x4.add(one, inner(x).tanh));
  },
};

/** gelu'(x). */
export const GELU_SLOPE: Readonly<Record<"erf" | "tanh", Make>> = {
  // Φ(x) + x φ(x)
  erf: (f) => {
    const normal = normalOf(f);
    const [max, min, density] = splats(f, TAIL, -TAIL, 1 / Math.sqrt(2 * Math.PI));
    return (x) => {
      const { cdf, bell } = normal(x);
      const clamped = f32x4.max(f32x4.min(x, max), min);
      return f.madd(f32x4.mul(clamped, density), bell, cdf);
    };
  },
  // (1 + t) / 2 + v/2 (1 - t²) √(2/π) (1 + 3 · 0.044715 v²)
  tanh: (f) => {
    const inner = innerTanh(f);
    const [half, one, slope, cube] = splats(f, 0.5, 1, SLOPE, 3 * CUBE);
    return (x) => {
      const { v, square, tanh: t } = inner(x);
      const steep = f32x4.mul(f.madd(square, cube, one), slope);
      const change = f32x4.mul(f32x4.mul(v, f32x4.sub(one, f32x4.mul(t, t))), steep);
      return f32x4.mul(half, f32x4.add(f32x4.add(one, t), change));
    };
  },
};
