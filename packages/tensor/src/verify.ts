/**
 * Runs a random case of an op on a device and compares it with another device. The property tests do this, and benchmarks verify
 * a driver with it before measuring its speed.
 */
import { CpuDevice } from "./cpu/device.ts";
import type { Device } from "./device.ts";
import type { DType, HostArray } from "./dtype.ts";
import type { Closeness } from "./op.ts";
import { type OpOrName, rowOf } from "./ops/index.ts";
import type { DeviceProfile } from "./profile.ts";
import { drawCase, type OpCase } from "./sample.ts";
import { formatShape, type Shape, sameShape } from "./shape.ts";
import { bindInputs, bindOutputs, type Dims } from "./signature.ts";
import type { Tensor } from "./tensor.ts";
import { TestRandom } from "./test-random.ts";

/** A result of an op: an output, or an input that it updated. */
export interface Outcome {
  readonly name: string;
  readonly shape: Shape;
  readonly dtype: DType;
  /** null on `meta`. */
  readonly values: HostArray | null;
}

/** Far from what ops make of the random cases; every dtype has it. */
const STALE = 111;

/**
 * Runs a case with all its residuals, reads everything that it wrote, and frees its tensors. What it wrote is overwritten first: a
 * pool gives the same memory to the next run of the case, where right values would hide what a kernel leaves unwritten.
 */
export async function runCase(device: Device, op: OpOrName, drawn: OpCase): Promise<Outcome[]> {
  const { signature } = rowOf(op);
  const residuals = signature.outputs.filter((operand) => operand.residual).map((operand) => operand.name);
  const inputs = drawn.inputs.map(
    (input) => input && device.tensor(input.values, input.shape, { dtype: input.dtype }),
  );
  let outputs: Record<string, Tensor> = {};
  try {
    outputs = device.run(op, inputs, drawn.attrs, residuals);
    const written: [string, Tensor][] = Object.entries(outputs);
    for (const [i, operand] of signature.inputs.entries()) {
      if (operand.updated) written.push([operand.name, inputs[i]!]);
    }
    const outcomes: Outcome[] = [];
    for (const [key, tensor] of written) {
      const values = device.holdsValues ? await tensor.read() : null;
      device.assign(tensor, new Uint8Array(tensor.size).fill(STALE));
      outcomes.push({ name: key, shape: tensor.shape, dtype: tensor.dtype, values });
    }
    return outcomes;
  } finally {
    for (const tensor of [...inputs, ...Object.values(outputs)]) tensor?.dispose();
  }
}

/** Extents of a case by letter, for the tolerance of its row; 1 for letters that only absent operands have. */
export function caseDims(op: OpOrName, drawn: OpCase): Dims {
  const row = rowOf(op);
  const letters = row.signature.inputs.flatMap((operand) => operand.letters);
  const leftOut = Object.fromEntries(letters.map((letter) => [letter, 1]));
  const bindings = bindInputs(row.name, row.signature, drawn.inputs);
  const inferred = row.infer?.(drawn.inputs, { ...row.attrs, ...drawn.attrs });
  if (inferred) bindOutputs(row.name, row.signature, inferred.outputs, bindings);
  return { ...leftOut, ...bindings.dims, ...inferred?.dims };
}

/** Errors of rounding to f16: relative, and absolute below its smallest normal number. */
const F16 = { rel: 2 ** -10, abs: 2 ** -20 };

/** Describes the first value that is not finite or differs from the reference by more than the tolerance; null if there is none. */
export function findDifference(
  what: string,
  got: HostArray,
  want: HostArray,
  close: Closeness,
  dtype: DType | null,
): string | null {
  if (got.length !== want.length) return `${what} has ${got.length} values, the reference ${want.length}`;
  let largest = 0;
  for (const value of want) largest = Math.max(largest, Math.abs(value));
  const half = dtype === "f16" ? F16 : { rel: 0, abs: 0 };
  const limit = (close.rel + half.rel) * largest + (close.abs ?? 0) + half.abs;
  for (let i = 0; i < got.length; i++) {
    const error = Math.abs(got[i] - want[i]);
    if (!(error <= limit) || !Number.isFinite(want[i])) {
      return `${what}[${i}] is ${got[i]}, the reference says ${want[i]}; |error| ${error} > ${limit}`;
    }
  }
  return null;
}

/**
 * What f16 operands of subgroup matrices add to a relative tolerance. Rounding changes either operand of a matmul by at most
 * 2^-11 of its value, in either direction. Attention rounds q and k (which changes scores and so weights) and weights and v.
 */
function f16Tolerance(name: string, { inputs }: OpCase, profile: DeviceProfile): number {
  if (profile.subgroupMatrices !== true) return 0;
  const has = (dtype: DType) => inputs.some((input) => input?.dtype === dtype);
  if (name.startsWith("attention")) return inputs[0]?.dtype === "f32" ? 2 ** -9 : 0;
  const isDecoded = inputs.some((input) => input?.name === "codes");
  return isDecoded || (has("f16") && has("f32")) ? 2 ** -10 : 0;
}

/** The float32 tolerance of a case on a device with this profile. */
export function closenessOf(op: OpOrName, drawn: OpCase, profile?: DeviceProfile): Closeness {
  const { name, close } = rowOf(op);
  const { rel, abs = 0 } = typeof close === "function" ? close(caseDims(op, drawn)) : close;
  return { rel: rel + (profile ? f16Tolerance(name, drawn, profile) : 0), abs };
}

/** Describes the first output that differs from `want` beyond the tolerance, or null if all agree. */
export function compareOutcomes(
  op: OpOrName,
  drawn: OpCase,
  got: readonly Outcome[],
  want: readonly Outcome[],
  profile?: DeviceProfile,
): string | null {
  const close = closenessOf(op, drawn, profile);
  for (const [i, { name: output, shape, dtype, values }] of got.entries()) {
    const what = `${rowOf(op).name}.${output}`;
    if (!sameShape(shape, want[i].shape)) {
      return `${what} is ${formatShape(shape)}, the reference ${formatShape(want[i].shape)}`;
    }
    const problem = findDifference(what, values!, want[i].values!, close, dtype);
    if (problem !== null) return problem;
  }
  return null;
}

/**
 * Runs random cases of an op on a device and on the reference: the first difference, or null. `elem` is the dtype of its
 * floating-point operands where the op allows it.
 */
export async function checkRow(
  device: Device,
  op: OpOrName,
  cases: number,
  elem: "f32" | "f16" = "f32",
): Promise<string | null> {
  const reference = new CpuDevice({ precision: "f64" });
  for (let seed = 1; seed <= cases; seed++) {
    const drawn = drawCase(rowOf(op), new TestRandom(seed), elem);
    const got = await runCase(device, op, drawn);
    const want = await runCase(reference, op, drawn);
    const problem = compareOutcomes(op, drawn, got, want, device.profile);
    if (problem !== null) return `case ${seed}: ${problem}`;
  }
  return null;
}
