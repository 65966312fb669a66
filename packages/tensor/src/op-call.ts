/** Binds the operands of an op call to the signature of its row, and finds the outputs that it will make. */
import { type DType, isFloat } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import type { AnyOpRow } from "./op.ts";
import {
  bindInputs,
  bindOutputs,
  type Dims,
  formatOperand,
  outputSpec,
  type TensorSpec,
} from "./signature.ts";
import { Tensor } from "./tensor.ts";

/** The arguments of a call: operands in the order of the signature, attributes, and the residuals to make. */
interface OpRequest {
  readonly inputs: readonly (Tensor | null | undefined)[];
  readonly attrs: object;
  readonly wanted: readonly string[];
}

/** An op call with its operands by name, extents and attributes. */
export interface Execution {
  readonly row: AnyOpRow;
  readonly io: Readonly<Record<string, Tensor | null>>;
  readonly dims: Dims;
  readonly attrs: object;
}

/** A bound call that still needs tensors for its outputs. */
interface OpCall extends Execution {
  /** Inputs by name, and null for each output; the caller fills in the outputs. */
  readonly io: Record<string, Tensor | null>;
  /** Names and specs of the outputs to make. */
  readonly outputs: readonly (readonly [name: string, spec: TensorSpec])[];
}

/** The error for an operand that is not a tensor, such as a number, or attributes in the place of an optional operand. */
function refuseOperand({ name, sig }: AnyOpRow, operand: string, value: unknown): SidenetError {
  const found =
    typeof value === "object" ? `an object with ${Object.keys(value ?? {}).join(", ")}` : `${value}`;
  return new SidenetError(
    "T-SHAPE",
    `${name}: ${operand} is ${found}, wanted a tensor. Operands come first, null for one that is left out, and attributes ` +
      `after them: ${sig}`,
  );
}

/** The dtype of outputs whose signature gives none: that of the first float input whose signature gives none. */
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
  const io: Record<string, Tensor | null> = {};
  const operands = signature.inputs.map(({ name: operand }, i) => {
    const tensor = inputs[i] ?? null;
    if (tensor !== null) {
      if (!(tensor instanceof Tensor)) throw refuseOperand(row, operand, tensor);
      check(tensor, operand);
    }
    io[operand] = tensor;
    return tensor;
  });
  const bindings = bindInputs(name, signature, operands);
  const fullAttrs = { ...row.attrs, ...attrs };
  const problem = row.check?.(bindings.dims, fullAttrs, (input) => io[input] !== null) ?? null;
  if (problem !== null) {
    const given = signature.inputs.flatMap((operand, i) =>
      operands[i] ? formatOperand(operand, bindings) : [],
    );
    throw new SidenetError("T-SHAPE", `${name}: ${problem} (${sig}; given ${given.join(" ")}).`);
  }
  const inferred = row.infer?.(operands, fullAttrs);
  if (inferred) bindOutputs(name, signature, inferred.outputs, bindings);
  const elem = elementType(row, io);
  const outputs: [string, TensorSpec][] = [];
  for (const [i, operand] of signature.outputs.entries()) {
    io[operand.name] = null;
    if (operand.residual && !wanted.includes(operand.name)) continue;
    outputs.push([operand.name, inferred?.outputs[i] ?? outputSpec(operand, bindings, elem)]);
  }
  return { row, io, dims: { ...bindings.dims, ...inferred?.dims }, attrs: fullAttrs, outputs };
}

/** Throws `T-VALUE` if an operand that the op updates in place has its memory in common with another one. */
export function refuseOverlap({ row, io }: Execution): void {
  const { inputs } = row.signature;
  for (const { name, updated } of inputs) {
    if (!updated) continue;
    const other = inputs.find(
      (input) => input.name !== name && io[input.name]?.storage === io[name]!.storage,
    );
    if (other === undefined) continue;
    throw new SidenetError(
      "T-VALUE",
      `${row.name}: ${name} is updated in place, and ${other.name} is in the same memory. Give it a copy of its own.`,
    );
  }
}
