import { type Device, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { besideTape, checkResult, plainOps, withHandles } from "./handed.ts";
import { Tape } from "./tape.ts";

/** One tensor computed from tensors, with the ops it is given and no others; the same each time it is called. */
export type Recomputed = (ops: Ops, ...inputs: Tensor[]) => Tensor;

const refuse = (problem: string): SidenetError => new SidenetError("A-CHECKPOINT", `checkpoint: ${problem}.`);

/**
 * Runs `fn` and, where `ops` is a tape, records it as a whole: the tape saves its inputs and nothing that it made. The backward
 * pass runs it again, on a tape of its own, for the gradients of the tracked inputs. So memory is paid for with a second
 * forward pass. Other ops just run it, so a checkpoint may be inside another.
 *
 * All that is trained inside is among `inputs`, parameters too, and `fn` uses what it is handed: these are other handles
 * on the same memory. Constants may come either way, and must live until the backward pass if `fn` brings them itself. An
 * input that the result does not depend on is `A-UNUSED` then. The result belongs to the innermost scope.
 *
 * Throws `A-CHECKPOINT` when `fn` returns anything but one float tensor, or takes a tracked tensor that it was not handed,
 * or uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`; and whatever `fn` throws.
 */
export function checkpoint(ops: Ops, fn: Recomputed, inputs: readonly Tensor[]): Tensor {
  if (!(ops instanceof Tape)) return runOnce(inputs[0]?.device ?? null, fn, ops, inputs);
  const { device } = ops;
  return device.scope(
    () => {
      const output = besideTape(ops, refuse, () =>
        withHandles(device, inputs, (handles) => {
          const y = runOnce(device, fn, plainOps(ops, handles, refuse), handles);
          // An input handed back is still a value of its own.
          return handles.includes(y) ? device.ops.reshape(y, { shape: y.shape }) : y;
        }),
      );
      ops.recordWhole("checkpoint", inputs, output, {
        saves: inputs,
        isFresh: true,
        pull: (_ops, dy, saved, tracked) => recompute(device, fn, saved, tracked, dy),
      });
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

/** In a scope of its own, so that what it made on the way is freed. */
function runOnce(device: Device | null, fn: Recomputed, ops: Ops, inputs: readonly Tensor[]): Tensor {
  if (device === null) throw refuse("it has no inputs, so there is nothing to compute again");
  return device.scope(() => checkResult(fn(ops, ...inputs), refuse), { label: "a checkpoint's function" });
}
