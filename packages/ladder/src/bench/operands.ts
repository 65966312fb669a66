/** Operands of a benchmark on a device, and the check of an op's result. */
import {
  CpuDevice,
  caseDims,
  checkRow,
  closenessOf,
  type Device,
  findDifference,
  type HostArray,
  isFloat,
  nf4Table,
  type OpCase,
  Random,
  rowOf,
  runCase,
  sizeOf,
  stateMaps,
  type Tensor,
} from "@sidenet/tensor";
import type { BenchCase, Operand } from "./shapes.ts";

/** Normal numbers repeat with this period, since generating all of them is slow. */
const PERIOD = 65_521; // a prime, so that rows of usual widths differ

/** Fills `all` with repetitions of `some`: copies take a hundredth of the time of values made one by one. */
function repeat<T extends Float32Array | Uint8Array>(all: T, some: T): T {
  for (let at = 0; at < all.length; at += some.length) {
    all.set(some.subarray(0, Math.min(some.length, all.length - at)), at);
  }
  return all;
}

function valuesOf({ shape, dtype, fill }: Operand, stream: number): ArrayLike<number> {
  const size = sizeOf(shape);
  switch (fill.kind) {
    case "nf4-table":
      return nf4Table({ double: size > 16 });
    case "state-maps":
      return stateMaps();
    case "value":
      return new Float32Array(size).fill(fill.value);
    case "bytes":
      return repeat(
        new Uint8Array(size),
        Uint8Array.from({ length: 2 ** 16 }, (_, i) => (i * 167 + (i >> 8) * 13) & 255),
      );
    case "ids": {
      const ids = dtype === "u8" ? new Uint8Array(size) : new Int32Array(size);
      for (let i = 0; i < size; i++) ids[i] = Math.imul(i, 2654435761) % fill.below;
      return ids.map((id) => Math.abs(id));
    }
    case "normal":
      return repeat(new Float32Array(size), new Random(1, stream).normals(Math.min(size, PERIOD)));
  }
}

/** From this number of elements on, the GPU generates normal and equal numbers. */
const LARGE = 2 ** 20;

/** One operand; the caller owns it. */
export function makeOperand(device: Device, name: string, operand: Operand, stream: number): Tensor {
  const { shape, dtype, fill } = operand;
  const isDrawn = fill.kind === "normal";
  if (device.kind !== "webgpu" || !(isDrawn || fill.kind === "value") || sizeOf(shape) < LARGE) {
    return device.tensor(() => valuesOf(operand, stream), shape, { dtype, label: name });
  }
  const made = device.scope(() => {
    const values = device.empty(shape, { label: name });
    if (isDrawn) device.ops.normal(values, { seed: 1, stream });
    else device.ops.fill(values, { value: fill.value });
    return dtype === "f16" ? device.ops.cast(values, { to: "f16" }) : values;
  });
  return device.keep(made);
}

/** Operands in the order of the signature, owned by the caller. */
export function makeOperands(device: Device, benchCase: BenchCase): (Tensor | null)[] {
  const made: (Tensor | null)[] = [];
  try {
    for (const [i, { name }] of rowOf(benchCase.op).signature.inputs.entries()) {
      const operand = benchCase.operands[name];
      made.push(operand ? makeOperand(device, name, operand, i) : null);
    }
    return made;
  } catch (error) {
    for (const tensor of made) tensor?.dispose();
    throw error;
  }
}

/** The largest number of multiply-adds of a check at the timed extents, which the reference computes. */
const MAX_CHECK_OPERATIONS = 4e8;
/** The largest number of elements that a check reads back. */
const MAX_READ = 2 ** 25;

/**
 * Compares an op on this device with the reference: in random cases and, if each row of the result depends on one row of the
 * operands, in three rows at the timed extents. Returns what differs, or null.
 */
export async function checkCase(
  device: Device,
  benchCase: BenchCase,
  operands: readonly (Tensor | null)[],
): Promise<string | null> {
  const { op, operands: specs } = benchCase;
  const elem = Object.values(specs).some(({ dtype }) => dtype === "f16") ? "f16" : "f32";
  return (await checkRow(device, op, 4, elem)) ?? (await checkSomeRows(device, benchCase, operands));
}

async function checkSomeRows(
  device: Device,
  { op, attrs, operands }: BenchCase,
  tensors: readonly (Tensor | null)[],
): Promise<string | null> {
  const row = rowOf(op);
  const hasRows = ({ dims }: { dims: readonly string[] }) => dims[0] === "N..";
  const byRow = (spec: { dims: readonly string[] }) => hasRows(spec) && spec.dims.length > 1;
  const { inputs, outputs } = row.signature;
  const plain = outputs.filter(({ residual }) => !residual);
  if (inputs.some(({ updated }) => updated) || !plain.every(byRow) || !inputs.some(byRow)) return null;
  if (tensors.reduce((sum, tensor) => sum + (tensor?.size ?? 0), 0) > MAX_READ) return null;
  const first = tensors[inputs.findIndex(byRow)]!;
  const count = first.shape[0];
  const rows = [...new Set([0, Math.floor(count / 2), count - 1])];
  const pickRows = (values: HostArray, width: number) =>
    rows.flatMap((at) => [...values.subarray(at * width, (at + 1) * width)]);
  const made = device.run(op, tensors, attrs);
  try {
    const drawn: OpCase["inputs"] = await Promise.all(
      inputs.map(async (input, i) => {
        const tensor = tensors[i];
        if (!tensor) return null;
        const { name } = input;
        const { dtype } = operands[name];
        const values = await tensor.read();
        if (!hasRows(input)) return { name, shape: tensor.shape, dtype, values };
        const shape = [rows.length, ...tensor.shape.slice(1)];
        return { name, shape, dtype, values: pickRows(values, tensor.size / count) };
      }),
    );
    const few = { inputs: drawn, attrs };
    const dims = caseDims(op, few);
    const has = (output: string) => made[output] !== undefined;
    if (row.flops(dims, { ...row.attrs, ...attrs }, has) > 2 * MAX_CHECK_OPERATIONS) return null;
    const want = await runCase(new CpuDevice({ precision: "f64" }), op, few);
    const close = closenessOf(op, few, device.profile);
    for (const { name } of plain) {
      const y = made[name];
      const got = Float64Array.from(pickRows(await y.read(), y.size / count));
      const expected = want.find((outcome) => outcome.name === name)!.values!;
      const problem = findDifference(name, got, expected, close, isFloat(y.dtype) ? y.dtype : null);
      if (problem !== null) return `at the timed extents: ${problem}`;
    }
    return null;
  } finally {
    for (const tensor of Object.values(made)) tensor.dispose();
  }
}
