import { buildOps, type Device, isFloat, type Ops, type SidenetError, Tensor } from "@sidenet/tensor";
import { refuseInPlace } from "./refusals.ts";
import type { Tape } from "./tape.ts";

/** Makes the error of `checkpoint` or of `customGradient` from what is wrong. */
export type Refuse = (problem: string) => SidenetError;

/** The backward pass of a function that is recorded as one op. */
export interface RecordedFunction {
  readonly saves: readonly Tensor[];
  /** Its gradients are in new memory even though they were not made by the `ops` that `pull` is given. */
  readonly isFresh: boolean;
  /** Gradients of the inputs at the positions `tracked`, from the gradient dy of the output. */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: readonly Tensor[],
    tracked: readonly number[],
  ) => readonly Tensor[];
}

/**
 * Calls `body` with new handles on the inputs. The tape does not track these handles, and the caller's closure does not have
 * them, so `plainOps` can tell an input from a tensor that the function captured.
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
      : `a value of type ${typeof value}`;

/**
 * The device's ops, for a function whose inner ops are not recorded. They refuse a tracked tensor, whose gradient would be
 * lost, and an in-place write into one of the function's inputs (`handles`), which the backward pass needs.
 */
export function plainOps(tape: Tape, handles: readonly Tensor[], refuse: Refuse): Ops {
  return buildOps((row, inputs, attrs) => {
    for (const [i, { name, updated }] of row.signature.inputs.entries()) {
      const tensor = inputs[i];
      if (!tensor) continue;
      if (tape.isTracked(tensor)) {
        throw refuse(
          `${name} of ${row.name} (${tensor}) is tracked, but is none of the function's inputs. Add it to the inputs, and use ` +
            "the argument",
        );
      }
      if (updated && handles.includes(tensor)) {
        throw refuseInPlace(row.name, name, "is an input of a function whose backward pass needs it");
      }
    }
    return tape.device.run(row, inputs, attrs);
  });
}

/** Runs a function that must not use the tape: ops recorded inside it would contribute to gradients twice. */
export function withoutRecording<R>(tape: Tape, refuse: Refuse, body: () => R): R {
  const recordsBefore = tape.recordCount;
  const result = body();
  if (tape.recordCount !== recordsBefore) {
    throw refuse("its function used the tape instead of the ops that it is given");
  }
  return result;
}
