import { type Device, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { checkResult, deviceOf, runUnrecorded, withHandles } from "./recorded-function.ts";
import { Tape } from "./tape.ts";

/** Computes one tensor from tensors, with the ops it is given and no others; deterministic, since it runs twice. */
export type Recomputed = (ops: Ops, ...inputs: Tensor[]) => Tensor;

const refuse = (problem: string): SidenetError => new SidenetError("A-CHECKPOINT", `checkpoint: ${problem}.`);

/**
 * Gradient checkpointing: runs `fn` and, where `ops` is a tape, records it as one op of which only the inputs are saved. The
 * backward pass runs `fn` again, on a tape of its own, for the gradients of the tracked inputs: less memory for a second
 * forward pass. Where `ops` is not a tape, `fn` just runs, so checkpoints may be nested.
 *
 * Leaves of the tape, such as parameters, are found where `fn` uses them. Every other tracked tensor that it uses must be among
 * `inputs`, and so must every tensor that may be freed before the backward pass; `fn` must then use its arguments, which are
 * other handles on the same memory. The backward pass throws `A-UNUSED` for a tracked input that the result does not depend on.
 * The result belongs to the innermost scope.
 *
 * Throws `A-CHECKPOINT` when `fn` returns anything but one float tensor, uses a tracked tensor that is neither an input nor a
 * leaf, or uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`; and whatever `fn` throws.
 */
export function checkpoint(ops: Ops, fn: Recomputed, inputs: readonly Tensor[]): Tensor {
  const device = deviceOf(ops, inputs, refuse);
  if (!(ops instanceof Tape)) return runOnce(device, fn, ops, inputs);
  return device.scope(
    () => {
      const captured = new Set<Tensor>();
      const forward = (plain: Ops, handles: readonly Tensor[]) => ({
        y: runOnce(device, fn, plain, handles),
        saves: handles,
      });
      const { y, saves } = runUnrecorded(ops, inputs, refuse, forward, captured);
      const leaves = [...captured].map((leaf) => [ops.leafName(leaf)!, leaf] as const);
      ops.recordFunction("checkpoint", [...inputs, ...captured], y, {
        saves: [...saves, ...captured], // leaves are there anyway, but must not have changed
        isFresh: true,
        pull: (_ops, dy, saved, tracked) =>
          recompute(device, fn, saved.slice(0, inputs.length), leaves, tracked, dy),
      });
      return y;
    },
    { label: "a checkpoint" },
  );
}

/** Gradients of those at the positions `tracked` among the inputs and the captured leaves. */
function recompute(
  device: Device,
  fn: Recomputed,
  inputs: readonly Tensor[],
  leaves: readonly (readonly [name: string, leaf: Tensor])[],
  tracked: readonly number[],
  dy: Tensor,
): readonly Tensor[] {
  return withHandles(device, inputs, (handles) => {
    // A handle for each position: a tensor given twice has two gradients, which the outer tape adds.
    const given = handles.map((handle, i) => [`input ${i} of a checkpoint`, handle] as const);
    const operands = [...given, ...leaves];
    const trained = tracked.map((i) => operands[i]);
    using tape = new Tape(device, trained);
    const gradients = tape.backward(runAgain(device, fn, tape, handles), dy);
    return trained.map(([, tensor]) => {
      const gradient = gradients.get(tensor)!;
      device.categorize(gradient, "workspace"); // the outer tape accounts it again if the input is a leaf
      return gradient;
    });
  });
}

/** `runOnce` in the backward pass, where tensors of a closure may be gone: says so in the error that names them. */
function runAgain(device: Device, fn: Recomputed, tape: Tape, inputs: readonly Tensor[]): Tensor {
  try {
    return runOnce(device, fn, tape, inputs);
  } catch (error) {
    if (!(error instanceof SidenetError) || error.code !== "T-USE-AFTER-FREE") throw error;
    const advice =
      "A checkpoint's function runs again in the backward pass: give it this tensor as an input, and use the argument.";
    throw new SidenetError(error.code, `${error.text} ${advice}`, { cause: error });
  }
}

/** Runs `fn` in a scope of its own, which frees its intermediate tensors. */
function runOnce(device: Device, fn: Recomputed, ops: Ops, inputs: readonly Tensor[]): Tensor {
  return device.scope(() => checkResult(fn(ops, ...inputs), refuse), { label: "a checkpoint's function" });
}
