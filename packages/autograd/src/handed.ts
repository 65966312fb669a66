import {
  buildOps,
  type Device,
  isFloat,
  type OpName,
  type Ops,
  rowOf,
  type SidenetError,
  Tensor,
} from "@sidenet/tensor";
import { refuseInPlace } from "./refusals.ts";
import type { Tape } from "./tape.ts";

/** Makes the error of what records a function as a whole. */
export type Refuse = (problem: string) => SidenetError;

/** Handles of our own on the inputs of a function: nothing tracks them, and a closure cannot have them. */
export function withHandles<R>(
  device: Device,
  inputs: readonly Tensor[],
  body: (handles: readonly Tensor[]) => R,
): R {
  const handles: Tensor[] = [];
  try {
    for (const input of inputs) handles.push(device.retain(input));
    return body(handles);
  } finally {
    for (const handle of handles) handle.dispose("the end of the function it was handed to");
  }
}

/** The result of a function, which is to be one float tensor. */
export function checkResult(y: unknown, refuse: Refuse): Tensor {
  if (!(y instanceof Tensor)) throw refuse(`its function returned ${describe(y)}, wanted one tensor`);
  if (!isFloat(y.dtype)) {
    throw refuse(`its function returned ${y}, wanted f32 or f16, which have gradients`);
  }
  return y;
}

const describe = (value: unknown): string =>
  Array.isArray(value)
    ? `an array of ${value.length}`
    : value === null
      ? "null"
      : `a value of type ${typeof value}`;

/** The device's ops for a function that the tape does not see: they refuse what the tape would have to see. */
export function plainOps(tape: Tape, handles: readonly Tensor[], refuse: Refuse): Ops {
  return buildOps((op: OpName, inputs, attrs) => {
    for (const [i, { name, updated }] of rowOf(op).signature.inputs.entries()) {
      const tensor = inputs[i];
      if (!tensor) continue;
      if (tape.isTracked(tensor)) {
        throw refuse(
          `${name} of ${op} (${tensor}) is tracked, but its function was not handed it. Add it to the inputs, and use ` +
            "the argument",
        );
      }
      if (updated && handles.includes(tensor)) {
        throw refuseInPlace(op, name, "is an input of a function whose backward pass needs it");
      }
    }
    return tape.device.run(op, inputs, attrs);
  });
}

/** Runs a function that must not use the tape: what it recorded there would be counted twice. */
export function besideTape<R>(tape: Tape, refuse: Refuse, body: () => R): R {
  const recordsBefore = tape.recordCount;
  const result = body();
  if (tape.recordCount !== recordsBefore) {
    throw refuse("its function used the tape, where it has to use the ops that it is given");
  }
  return result;
}
