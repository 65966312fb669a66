/**
 * Kernels of two operands, y = f(a, b). Each is emitted twice: for operands of one shape, where a task is a chunk of
 * elements, and for operands that broadcast, where a task is `rows` rows of the output.
 */
import type { FunctionBuilder, Local } from "../assembler/function.ts";
import { f32x4, i32, type V128, v128 } from "../assembler/instructions.ts";
import { GELU_SLOPE } from "./activations.ts";
import { defineKernel, words } from "./kernel.ts";
import { expOf, sigmoidOf } from "./math.ts";
import { forChunk, forRows, OUTER_AXES } from "./tasks.ts";
import { at, forVectors, splat } from "./vectors.ts";

type Function2 = (a: V128, b: V128) => V128;

/** How a result is stored, and the bytes of an element: f32, or a mask of one byte from a comparison. */
const RESULTS = { value: { bytes: 4, store: "store" }, mask: { bytes: 1, store: "storeMask" } } as const;
type Result = keyof typeof RESULTS;

const sameShape = (make: (f: FunctionBuilder) => Function2, result: Result = "value") =>
  defineKernel(words("a", "b", "y", "n"), (f, { a, b, y, n }, { task }) => {
    const apply = make(f);
    const { bytes, store } = RESULTS[result];
    forChunk(f, task, n, [a, b, [y, bytes]], ([a, b, y]) => y[store](apply(a.load(), b.load())));
  });

const AXES = Array.from({ length: OUTER_AXES }, (_, axis) => axis as 0 | 1 | 2 | 3);
const OUTER = words(...AXES.flatMap((axis) => [`extent${axis}`, `a${axis}`, `b${axis}`] as const));

/**
 * A row is one index of the outer axes, of which axis 0 is the last; strides are in bytes, 0 where the operand repeats.
 * `aRepeats` and `bRepeats` say whether an operand has one element for the whole row of `c`.
 */
const broadcasting = (make: (f: FunctionBuilder) => Function2, result: Result) =>
  defineKernel(
    { ...words("a", "b", "y", "n", "c", "aRepeats", "bRepeats", "rows"), ...OUTER } as const,
    (f, { a, b, y, n, c, aRepeats, bRepeats, rows, ...p }, { task }) => {
      const [aAt, bAt, rest, index] = Array.from({ length: 4 }, () => f.i32());
      const all = f.v128();
      const apply = make(f);
      const { bytes, store } = RESULTS[result];
      forRows(f, task, { rows, n }, (row) => {
        f.set(aAt, a);
        f.set(bAt, b);
        f.set(rest, row);
        for (const axis of AXES) {
          f.if(rest, () => {
            f.set(index, i32.remU(rest, p[`extent${axis}`]));
            f.set(rest, i32.divU(rest, p[`extent${axis}`]));
            f.set(aAt, at(aAt, index, p[`a${axis}`]));
            f.set(bAt, at(bAt, index, p[`b${axis}`]));
          });
        }
        const to = [f.i32(at(y, i32.mul(row, c), bytes)), bytes] as const;
        f.if(
          aRepeats,
          () => {
            f.set(all, v128.load32Splat(aAt));
            forVectors(f, c, [bAt, to], ([b, y]) => y[store](apply(all, b.load())));
          },
          () =>
            f.if(
              bRepeats,
              () => {
                f.set(all, v128.load32Splat(bAt));
                forVectors(f, c, [aAt, to], ([a, y]) => y[store](apply(a.load(), all)));
              },
              () => forVectors(f, c, [aAt, bAt, to], ([a, b, y]) => y[store](apply(a.load(), b.load()))),
            ),
        );
      });
    },
  );

const both = (make: (f: FunctionBuilder) => Function2, result: Result = "value") =>
  [sameShape(make, result), broadcasting(make, result)] as const;

export const [add, addBroadcast] = both(() => f32x4.add);
export const [sub, subBroadcast] = both(() => f32x4.sub);
export const [mul, mulBroadcast] = both(() => f32x4.mul);
export const [div, divBroadcast] = both(() => f32x4.div);
export const [minimum, minimumBroadcast] = both(() => f32x4.min);
export const [maximum, maximumBroadcast] = both(() => f32x4.max);
export const [equal, equalBroadcast] = both(() => f32x4.eq, "mask");
export const [less, lessBroadcast] = both(() => f32x4.lt, "mask");
export const [lessEqual, lessEqualBroadcast] = both(() => f32x4.le, "mask");

/** dx = dy · f'(x). */
const backward = (make: (f: FunctionBuilder) => (x: Local<"v128">) => V128) =>
  sameShape((f) => {
    const slopeOf = make(f);
    return (dy, x) => f32x4.mul(dy, slopeOf(f.v128(x)));
  });

export const geluBackwardErf = backward(GELU_SLOPE.erf);
export const geluBackwardTanh = backward(GELU_SLOPE.tanh);

/** scale · e / (1 + e)² with e = e^-rate|x|, which is not 0 where the sigmoid rounds to 1. */
const sigmoidSlope = (rate: number, scale: number) =>
  backward((f) => {
    const exp = expOf(f);
    const [one, minusRate, all] = [1, -rate, scale].map((value) => splat(f, value));
    return (x) => {
      const e = f.v128(exp(f32x4.mul(f32x4.abs(x), minusRate)));
      const root = f.v128(f32x4.add(e, one));
      return f32x4.div(f32x4.mul(e, all), f32x4.mul(root, root));
    };
  });

export const sigmoidBackward = sigmoidSlope(1, 1);
export const tanhBackward = sigmoidSlope(2, 4);

export const siluBackward = backward((f) => {
  const [sigmoid, one] = [sigmoidOf(f), splat(f, 1)];
  return (x) => {
    const s = f.v128(sigmoid(x));
    return f32x4.mul(s, f.madd(x, f32x4.sub(one, s), one));
  };
});

export const siluMul = sameShape((f) => {
  const sigmoid = sigmoidOf(f);
  return (gate, up) => {
    const g = f.v128(gate);
    return f32x4.mul(f32x4.mul(g, sigmoid(g)), up);
  };
});
