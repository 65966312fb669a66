/** A call of an op before it runs: operands bound to the row's signature, and what the op will make. */
import { type DType, isFloat } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import type { AnyOpRow } from "./op.ts";
import { bindInputs, type Dims, outputSpec, type TensorSpec } from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** What a caller gives an op: operands in the order of the signature, attributes, and the residuals it wants. */
export interface OpRequest {
  readonly inputs: readonly (Tensor | null | undefined)[];
  readonly attrs: object;
  readonly wanted: readonly string[];
}

/** One op about to run: its row, operands by name, extents and attributes. */
export interface Execution {
  readonly row: AnyOpRow;
  readonly io: Readonly<Record<string, Tensor | null>>;
  readonly dims: Dims;
  readonly attrs: object;
}

/** An op that may run, once there are tensors for its outputs. */
export interface OpCall extends Execution {
  /** Inputs by name, and null for each residual that is not wanted; the outputs are still to come. */
  readonly io: Record<string, Tensor | null>;
  /** What is to be made, by name. */
  readonly outputs: readonly (readonly [name: string, spec: TensorSpec])[];
}

/** JavaScript lets anything stand for a tensor: a number, or attributes where an operand may be left out. */
function refuseOperand({ name, sig }: AnyOpRow, operand: string, value: unknown): SidenetError {
  const found =
    typeof value === "object" ? `an object with ${Object.keys(value ?? {}).join(", ")}` : `${value}`;
  return new SidenetError(
    "T-SHAPE",
    `${name}: ${operand} is ${found}, wanted a tensor. Operands come first, null for one that is left out, and attributes ` +
      `after them: ${sig}`,
  );
}

/** Inputs by name. `check` throws for a tensor that the device cannot use. */
function inputsByName(
  row: AnyOpRow,
  inputs: OpRequest["inputs"],
  check: (tensor: Tensor, operand: string) => void,
): Record<string, Tensor | null> {
  const io: Record<string, Tensor | null> = {};
  for (const [i, { name }] of row.signature.inputs.entries()) {
    const tensor = inputs[i] ?? null;
    io[name] = tensor;
    if (tensor === null) continue;
    if (!(tensor instanceof Tensor)) throw refuseOperand(row, name, tensor);
    check(tensor, name);
  }
  return io;
}

/** The dtype of outputs that have none of their own: that of the first float input without one. */
function elementType({ signature }: AnyOpRow, io: Readonly<Record<string, Tensor | null>>): DType {
  for (const { name, dtype } of signature.inputs) {
    const tensor = io[name];
    if (tensor && dtype === null && isFloat(tensor.dtype)) return tensor.dtype;
  }
  return "f32";
}

/**
 * Binds a call to the row's signature. Throws `T-SHAPE`, `T-DTYPE`, and what `check` throws for a tensor that the device
 * cannot use.
 */
export function bindCall(
  row: AnyOpRow,
  { inputs, attrs, wanted }: OpRequest,
  check: (tensor: Tensor, operand: string) => void,
): OpCall {
  const { name, signature, sig } = row;
  const io = inputsByName(row, inputs, check);
  const operands = signature.inputs.map((operand) => io[operand.name]);
  const bindings = bindInputs(name, signature, operands);
  const fullAttrs = { ...row.attrs, ...attrs };
  const problem = row.check?.(bindings.dims, fullAttrs, (input) => io[input] !== null) ?? null;
  if (problem !== null) throw new SidenetError("T-SHAPE", `${name}: ${problem} (${sig}).`);
  const inferred = row.infer?.(operands, fullAttrs);
  const elem = elementType(row, io);
  const outputs: [string, TensorSpec][] = [];
  for (const [i, operand] of signature.outputs.entries()) {
    io[operand.name] = null;
    if (operand.residual && !wanted.includes(operand.name)) continue;
    outputs.push([operand.name, inferred?.outputs[i] ?? outputSpec(operand, bindings, elem)]);
  }
  return { row, io, dims: { ...bindings.dims, ...inferred?.dims }, attrs: fullAttrs, outputs };
}
