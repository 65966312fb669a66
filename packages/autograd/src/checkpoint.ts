import { type Device, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { checkResult, plainOps, withHandles, withoutRecording } from "./recorded-function.ts";
import { Tape } from "./tape.ts";

/** Computes one tensor from tensors, with the ops it is given and no others; deterministic, since it runs twice. */
export type Recomputed = (ops: Ops, ...inputs: Tensor[]) => Tensor;

const refuse = (problem: string): SidenetError => new SidenetError("A-CHECKPOINT", `checkpoint: ${problem}.`);

/**
 * Gradient checkpointing: runs `fn` and, where `ops` is a tape, records it as one op of which only the inputs are saved. The
 * backward pass runs `fn` again, on a tape of its own, for the gradients of the tracked inputs: less memory for a second
 * forward pass. Where `ops` is not a tape, `fn` just runs, so checkpoints may be nested.
 *
 * Everything tracked that `fn` uses, parameters included, must be among `inputs`, and `fn` must use its arguments, which are
 * other handles on the same memory. `fn` may capture constants, which must then live until the backward pass. The backward
 * pass throws `A-UNUSED` for a tracked input that the result does not depend on. The result belongs to the innermost scope.
 *
 * Throws `A-CHECKPOINT` when `fn` returns anything but one float tensor, uses a tracked tensor that is not among the inputs,
 * or uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`; and whatever `fn` throws.
 */
export function checkpoint(ops: Ops, fn: Recomputed, inputs: readonly Tensor[]): Tensor {
  if (!(ops instanceof Tape)) return runOnce(inputs[0]?.device ?? null, fn, ops, inputs);
  const { device } = ops;
  return device.scope(
    () => {
      const output = withoutRecording(ops, refuse, () =>
        withHandles(device, inputs, (handles) => {
          const y = runOnce(device, fn, plainOps(ops, handles, refuse), handles);
          // Where fn returns an input itself, the result is another value than that input.
          return handles.includes(y) ? device.ops.reshape(y, { shape: y.shape }) : y;
        }),
      );
      ops.recordFunction("checkpoint", inputs, output, {
        saves: inputs,
        isFresh: true,
        pull: (_ops, dy, saved, tracked) => recompute(device, fn, saved, tracked, dy),
      });
      return output;
    },
    { label: "a checkpoint" },
  );
}

/** Gradients of the inputs at the positions `tracked`. */
function recompute(
  device: Device,
  fn: Recomputed,
  inputs: readonly Tensor[],
  tracked: readonly number[],
  dy: Tensor,
): readonly Tensor[] {
  return withHandles(device, inputs, (handles) => {
    // A handle for each position: a tensor given twice has two gradients, which the outer tape adds.
    using tape = new Tape(
      device,
      tracked.map((i) => [`input ${i} of a checkpoint`, handles[i]] as const),
    );
    const gradients = tape.backward(runOnce(device, fn, tape, handles), dy);
    return tracked.map((i) => {
      const gradient = gradients.get(handles[i])!;
      device.categorize(gradient, "workspace"); // the outer tape accounts it again if the input is a leaf
      return gradient;
    });
  });
}

/** Runs `fn` in a scope of its own, which frees its intermediate tensors. */
function runOnce(device: Device | null, fn: Recomputed, ops: Ops, inputs: readonly Tensor[]): Tensor {
  if (device === null) throw refuse("it has no inputs, so there is nothing to compute again");
  return device.scope(() => checkResult(fn(ops, ...inputs), refuse), { label: "a checkpoint's function" });
}
