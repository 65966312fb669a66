import { buildOps, type Device, isFloat, type Ops, rowOf, Tensor } from "@sidenet/tensor";
import { methodResult } from "./gradient-slots.ts";
import { refuseCheckpoint, refuseInPlace } from "./refusals.ts";
import { Tape } from "./tape.ts";

/** One tensor computed from tensors, with the ops it is given and no others; the same each time it is called. */
export type Recomputed = (ops: Ops, ...inputs: Tensor[]) => Tensor;

/**
 * Runs `fn` and records it as a whole: the tape saves its inputs and nothing that it made. The backward pass runs it again,
 * on a tape of its own, for the gradients of the tracked inputs. So memory is paid for with a second forward pass.
 *
 * All that is trained inside is among `inputs`, parameters too, and `fn` uses what it is handed: these are other handles
 * on the same memory. Constants may come either way, and must live until the backward pass if `fn` brings them itself. An
 * input that the result does not depend on is `A-UNUSED` then. The result belongs to the innermost scope.
 *
 * Throws `A-CHECKPOINT` when `fn` returns anything but one float tensor, or takes a tracked tensor that it was not handed,
 * or uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`; and whatever `fn` throws.
 */
export function checkpoint(tape: Tape, fn: Recomputed, inputs: readonly Tensor[]): Tensor {
  const { device } = tape;
  return device.scope(
    () => {
      const recordsBefore = tape.recordCount;
      const output = withHandles(device, inputs, (handles) => {
        const y = runOnce(device, fn, plainOps(tape, handles), handles);
        // An input handed back is still a value of its own.
        return handles.includes(y) ? device.ops.reshape(y, { shape: y.shape }) : y;
      });
      if (tape.recordCount !== recordsBefore) {
        throw refuseCheckpoint("its function used the tape, where it has to use the ops that it is given");
      }
      tape.recordWhole("checkpoint", inputs, output, (dy, saved, tracked) =>
        recompute(device, fn, saved, tracked, dy),
      );
      return output;
    },
    { label: "a checkpoint" },
  );
}

/** Gradients of the inputs at the places `tracked`. */
function recompute(
  device: Device,
  fn: Recomputed,
  inputs: readonly Tensor[],
  tracked: readonly number[],
  dy: Tensor,
): readonly Tensor[] {
  return withHandles(device, inputs, (handles) => {
    // A handle for each place: one tensor given twice has two gradients, which the outer tape adds.
    using tape = new Tape(
      device,
      tracked.map((i) => [`input ${i} of a checkpoint`, handles[i]] as const),
    );
    const gradients = tape.backward(runOnce(device, fn, tape, handles), dy);
    return tracked.map((i) => {
      const gradient = gradients.get(handles[i])!;
      device.categorize(gradient, "workspace"); // the outer tape knows whether it is a leaf's
      return gradient;
    });
  });
}

/** Handles of our own: nothing tracks them, and a closure cannot have them. */
function withHandles<R>(
  device: Device,
  inputs: readonly Tensor[],
  body: (handles: readonly Tensor[]) => R,
): R {
  const handles: Tensor[] = [];
  try {
    for (const input of inputs) handles.push(device.retain(input));
    return body(handles);
  } finally {
    for (const handle of handles) handle.dispose("the end of a checkpoint");
  }
}

function runOnce(device: Device, fn: Recomputed, ops: Ops, handles: readonly Tensor[]): Tensor {
  return device.scope(
    () => {
      const y: unknown = fn(ops, ...handles);
      if (!(y instanceof Tensor)) {
        throw refuseCheckpoint(`its function returned ${describe(y)}, wanted one tensor`);
      }
      if (!isFloat(y.dtype)) {
        throw refuseCheckpoint(`its function returned ${y}, wanted f32 or f16, which have gradients`);
      }
      return y;
    },
    { label: "a checkpoint's function" },
  );
}

const describe = (value: unknown): string =>
  Array.isArray(value)
    ? `an array of ${value.length}`
    : value === null
      ? "null"
      : `a value of type ${typeof value}`;

/** The device's ops, which refuse what would be another computation the second time. */
function plainOps(tape: Tape, handles: readonly Tensor[]): Ops {
  return buildOps((op, inputs, attrs) => {
    for (const [i, { name, updated }] of rowOf(op).signature.inputs.entries()) {
      const tensor = inputs[i];
      if (!tensor) continue;
      if (tape.isTracked(tensor)) {
        throw refuseCheckpoint(
          `${name} of ${op} (${tensor}) is tracked, but its function was not handed it. Add it to the inputs, and use ` +
            "the argument",
        );
      }
      if (updated && handles.includes(tensor)) {
        throw refuseInPlace(op, name, "is an input of a checkpoint, which is computed twice");
      }
    }
    return methodResult(op, tape.device.run(op, inputs, attrs));
  });
}
