import { buildOps, type Device, isFloat, type Ops, type SidenetError, Tensor } from "@sidenet/tensor";
import { refuseInPlace } from "./refusals.ts";
import { Tape } from "./tape.ts";

/** Makes the error of `checkpoint` or of `customGradient` from what is wrong. */
export type Refuse = (problem: string) => SidenetError;

/** The result of a function's forward pass, and what its backward pass needs. */
export interface ForwardResult {
  readonly y: Tensor;
  /** Kept until the backward pass: inputs, y, or other tensors that the forward pass made. */
  readonly saves: readonly Tensor[];
}

/**
 * Calls `body` with new handles on the inputs. The tape does not track these handles, and the caller's closure does not have
 * them, so `runUnrecorded` can tell an argument from a tensor that the function captured.
 */
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
    for (const handle of handles) handle.dispose("the end of the function it was given to");
  }
}

/** The device that a function runs on. Throws unless the inputs are an array, as the type says, and not empty outside a tape. */
export function deviceOf(ops: Ops, inputs: readonly Tensor[], refuse: Refuse): Device {
  if (!Array.isArray(inputs)) throw refuse(`its inputs are ${describe(inputs)}, wanted an array of tensors`);
  const device: Device | undefined = ops instanceof Tape ? ops.device : inputs[0]?.device;
  if (device === undefined) throw refuse("it has no inputs");
  return device;
}

/** Returns `y` if it is one float tensor; throws otherwise. */
export function checkResult(y: unknown, refuse: Refuse): Tensor {
  if (!(y instanceof Tensor)) throw refuse(`its function returned ${describe(y)}, wanted one tensor`);
  if (!isFloat(y.dtype)) {
    throw refuse(`its function returned ${y}, wanted f32 or f16: only these have gradients`);
  }
  return y;
}

const describe = (value: unknown): string =>
  Array.isArray(value)
    ? `an array of ${value.length}`
    : value === null
      ? "null"
      : value instanceof Tensor
        ? `${value}`
        : `a value of type ${typeof value}`;

/**
 * Runs a function that the tape will record as one op, with the device's ops over handles on its inputs. Tensors that it saves
 * are mapped from handles to the inputs, and a result that is no tensor of its own becomes one.
 *
 * A tracked tensor that the function uses without being given it would lose its gradient. It is added to `captured` if it is a
 * leaf of the tape and `captured` is given, and refused otherwise; so are in-place writes into an input, and use of the tape. An
 * input may come through a closure too, unless `captured` says that the function runs again: then on a tape that tracks handles.
 */
export function runUnrecorded(
  tape: Tape,
  inputs: readonly Tensor[],
  refuse: Refuse,
  forward: (ops: Ops, handles: readonly Tensor[]) => ForwardResult,
  captured: Set<Tensor> | null = null,
): ForwardResult {
  const { device, recordCount } = tape;
  const capture = (tensor: Tensor, what: string): void => {
    if (captured && tape.leafName(tensor) !== null) captured.add(tensor);
    else if (tape.isTracked(tensor) && (captured || !inputs.includes(tensor))) {
      const problem = inputs.includes(tensor)
        ? "an input, but comes through a closure. Use"
        : "tracked, but is none of the function's inputs. Add it to the inputs, and use";
      throw refuse(`${what} (${tensor}) is ${problem} the argument`);
    }
  };
  return withHandles(device, inputs, (handles) => {
    const isInput = (tensor: Tensor) => handles.includes(tensor) || inputs.includes(tensor);
    const ops = buildOps((row, operands, attrs) => {
      for (const [i, { name, updated }] of row.signature.inputs.entries()) {
        const tensor = operands[i];
        if (!tensor) continue;
        capture(tensor, `${name} of ${row.name}`);
        if (updated && isInput(tensor)) {
          throw refuseInPlace(row.name, name, "is an input of a function whose backward pass needs it");
        }
      }
      return device.run(row, operands, attrs);
    });
    const { y, saves } = forward(ops, handles);
    // Ops that the tape recorded would contribute to gradients twice.
    if (tape.recordCount !== recordCount)
      throw refuse("its function used the tape instead of the ops that it is given");
    capture(y, "its result");
    const isOwn = !isInput(y) && !tape.isTracked(y);
    return {
      y: isOwn ? y : device.ops.reshape(y, { shape: y.shape }),
      saves: saves.map((tensor) => inputs[handles.indexOf(tensor)] ?? tensor),
    };
  });
}
