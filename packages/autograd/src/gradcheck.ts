import {
  CpuDevice,
  type Device,
  type DType,
  isFloat,
  type Ops,
  type Shape,
  SidenetError,
  type Tensor,
  TestRandom,
} from "@sidenet/tensor";
import { Tape } from "./tape.ts";

/** One input of the function that is checked. */
export interface GradcheckInput {
  /** Its name in messages; the default is its position. */
  readonly name?: string;
  readonly shape: Shape;
  readonly values: ArrayLike<number>;
  /** Default f32. Only floats are checked, and all are computed in double, f16 too. */
  readonly dtype?: DType;
  /** Not differentiated: a table, a mask or a frozen weight. */
  readonly constant?: boolean;
}

/** The tolerance, the steps and the seed of `gradcheck`. */
export interface GradcheckOptions {
  /** Largest relative error that passes. Default 1e-6. */
  readonly tolerance?: number;
  /** Steps of the finite difference, relative to the root mean square of the input; the smallest error of them counts. */
  readonly steps?: readonly number[];
  readonly seed?: number;
  /** Pass an input with a gradient of 0 where finite differences give 0 as well, as for `sign`. Default false. */
  readonly allowZero?: boolean;
}

/** Relative errors of gradients against finite differences. */
export interface GradcheckReport {
  /** Largest relative error of all checked inputs. */
  readonly worst: number;
  readonly inputs: readonly GradcheckedInput[];
}

/** The outcome for one input. */
export interface GradcheckedInput {
  readonly name: string;
  readonly error: number;
  /** Gradient and finite differences are all 0, so a rule that always returns 0 would pass too. */
  readonly isZero: boolean;
}

/** Truncation falls with the square of the step, rounding rises as eps / step: in double they meet near 1e-5. */
const STEPS = [1e-4, 1e-5, 1e-3, 1e-6];
const TOLERANCE = 1e-6;

/** The function to differentiate: it computes a tensor from tensors with the ops it is given and no others. */
export type Differentiable = (ops: Ops, ...inputs: Tensor[]) => Tensor;

/** Σ a·b and Σ |a·b|. The terms of the first may cancel, so errors are relative to the second. */
function inner(a: ArrayLike<number>, b: ArrayLike<number>): { sum: number; size: number } {
  let sum = 0;
  let size = 0;
  for (let i = 0; i < a.length; i++) {
    sum += a[i] * b[i];
    size += Math.abs(a[i] * b[i]);
  }
  return { sum, size };
}

const rootMeanSquare = (values: ArrayLike<number>): number =>
  Math.sqrt(inner(values, values).sum / Math.max(values.length, 1)) || 1;

async function readAndFree(tensor: Tensor): Promise<ArrayLike<number>> {
  const values = await tensor.read();
  tensor.dispose();
  return values;
}

const upload = (device: Device, inputs: readonly GradcheckInput[]): Tensor[] =>
  inputs.map(({ values, shape, dtype = "f32" }) => device.tensor(values, shape, { dtype }));

/** The values of f with input `at` moved by `step` along `direction`. */
function evaluate(
  device: Device,
  f: Differentiable,
  inputs: readonly GradcheckInput[],
  at: number,
  direction: Float64Array,
  step: number,
): Promise<ArrayLike<number>> {
  const moved = inputs.map((input, i) =>
    i === at
      ? { ...input, values: Float64Array.from(direction, (v, k) => input.values[k] + step * v) }
      : input,
  );
  return readAndFree(device.scope(() => f(device.ops, ...upload(device, moved))));
}

/** Draws a random u of the result's shape; returns it with the gradients of ⟨u, f⟩, by position of the checked inputs. */
async function gradientsOfProjection(
  device: Device,
  f: Differentiable,
  inputs: readonly GradcheckInput[],
  checked: readonly number[],
  pick: TestRandom,
): Promise<{ u: Float64Array; gradients: Map<number, ArrayLike<number>> }> {
  const [u, pairs] = device.scope(() => {
    const tensors = upload(device, inputs);
    using tape = new Tape(
      device,
      checked.map((i) => [inputs[i].name ?? `input ${i}`, tensors[i]]),
    );
    const y = f(tape, ...tensors);
    const u = pick.normals(y.size);
    const gradients = tape.backward(y, device.tensor(u, y.shape, { dtype: y.dtype }));
    return [u, checked.map((i) => gradients.get(tensors[i])!)] as const;
  });
  const gradients = new Map<number, ArrayLike<number>>();
  for (const [k, gradient] of pairs.entries()) gradients.set(checked[k], await readAndFree(gradient));
  return { u, gradients };
}

/**
 * Checks the gradients of `f` in double on the CPU: for a random u and, input by input, a random direction v, the central
 * difference ⟨u, (f(x + hv) - f(x - hv)) / 2h⟩ against ⟨gradient of ⟨u, f⟩, v⟩. Resolves to the worst relative error.
 *
 * Throws `A-GRADCHECK` naming the input when its error is above the tolerance, or when both sides are 0, unless `allowZero` is
 * set: at such values (a relu of negative numbers, say) a missing gradient looks like a right one. PyTorch's gradcheck passes
 * there. Throws what the tape throws: an input that the result does not depend on is an error, unless it is marked constant.
 *
 *     await gradcheck((ops, x, w) => ops.silu(ops.linear(x, w)), [{ shape: [2, 3], values }, { shape: [4, 3], values: w }]);
 */
export async function gradcheck(
  f: Differentiable,
  inputs: readonly GradcheckInput[],
  options: GradcheckOptions = {},
): Promise<GradcheckReport> {
  const { tolerance = TOLERANCE, steps = STEPS, seed = 1, allowZero = false } = options;
  const device = new CpuDevice({ precision: "f64" });
  const pick = new TestRandom(seed);
  const checked = [...inputs.keys()].filter((i) => isFloat(inputs[i].dtype ?? "f32") && !inputs[i].constant);
  const { u, gradients } = await gradientsOfProjection(device, f, inputs, checked, pick);
  const report: GradcheckedInput[] = [];
  for (const i of checked) {
    const name = inputs[i].name ?? `input ${i}`;
    const direction = pick.normals(inputs[i].values.length);
    const fromRule = inner(gradients.get(i)!, direction);
    const unit = rootMeanSquare(inputs[i].values);
    let error = Number.POSITIVE_INFINITY;
    let slope = Number.NaN;
    let isZero = false;
    for (const relativeStep of steps) {
      const step = relativeStep * unit;
      const above = await evaluate(device, f, inputs, i, direction, step);
      const below = await evaluate(device, f, inputs, i, direction, -step);
      const difference = inner(
        u,
        Float64Array.from(u, (_, k) => (above[k] - below[k]) / (2 * step)),
      );
      const size = Math.max(difference.size, fromRule.size);
      const stepError = Math.abs(difference.sum - fromRule.sum) / (size || 1);
      if (stepError < error) [error, slope, isZero] = [stepError, difference.sum, size === 0];
      if (error <= tolerance / 10) break;
    }
    if (!(error <= tolerance)) {
      throw new SidenetError(
        "A-GRADCHECK",
        `along a random direction the gradient with respect to ${name} gives a slope of ${fromRule.sum}, finite ` +
          `differences give ${slope}: relative error ${error.toExponential(1)}, tolerance ${tolerance}. Gradcheck its ops ` +
          "one by one to find the wrong one.",
      );
    }
    if (isZero && !allowZero) {
      throw new SidenetError(
        "A-GRADCHECK",
        `the gradient with respect to ${name} is 0, and so are finite differences: at these values the result does not depend on ` +
          "it, so nothing was checked. Choose other values, mark it constant, or set allowZero where 0 is right.",
      );
    }
    report.push({ name, error, isZero });
  }
  return { worst: Math.max(0, ...report.map(({ error }) => error)), inputs: report };
}
