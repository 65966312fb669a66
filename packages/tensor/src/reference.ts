import { type HostArray, hostArray, isFloat } from "./dtype.ts";
import type { Execution } from "./op-call.ts";
import type { Tensor } from "./tensor.ts";

/** Access of the reference to a device's values. */
interface ValueAccess {
  /** Returns the values of a tensor, which are only read. */
  load(tensor: Tensor): HostArray;
  /** Stores new values of a tensor, rounded to its dtype. */
  store(tensor: Tensor, values: HostArray): void;
}

/** Runs an op by the reference loops of its row, in double, on values of another device. */
export function runReference({ row, io, dims, attrs }: Execution, access: ValueAccess): void {
  const operands: Record<string, HostArray | null> = {};
  const shapes = Object.fromEntries(
    Object.entries(io).map(([name, tensor]) => [name, tensor?.shape ?? null]),
  );
  const written: [Tensor, HostArray][] = [];
  for (const { name, updated } of row.signature.inputs) {
    const tensor = io[name];
    const values = tensor && access.load(tensor);
    operands[name] = values && updated ? Float64Array.from(values) : values;
    if (tensor && updated) written.push([tensor, operands[name]!]);
  }
  for (const { name } of row.signature.outputs) {
    const tensor = io[name] ?? null;
    operands[name] =
      tensor &&
      (isFloat(tensor.dtype) ? new Float64Array(tensor.size) : hostArray(tensor.dtype, tensor.size));
    if (tensor) written.push([tensor, operands[name]!]);
  }
  row.reference(operands, dims, attrs, shapes);
  for (const [tensor, values] of written) access.store(tensor, values);
}
