import { type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { besideTape, checkResult, plainOps, type Refuse, withHandles } from "./handed.ts";
import { Tape } from "./tape.ts";

/** What a forward pass made, where the backward pass needs more than the inputs. */
export interface ForwardResult {
  readonly y: Tensor;
  /** Inputs, y, or others that it made: kept until the backward pass, and nothing else is. */
  readonly saves: readonly Tensor[];
}

/** A function with its gradient: what composing recorded ops computes slower, less exactly, or in more memory. */
export interface CustomGradient {
  /** In records, messages and scopes. */
  readonly name: string;
  /**
   * One float tensor from the inputs, with the ops that it is given and, on WebGPU, kernels of the caller's. A tensor alone
   * saves nothing.
   */
  readonly forward: (ops: Ops, ...inputs: Tensor[]) => Tensor | ForwardResult;
  /**
   * Gradients of the inputs, in their order, from the gradient dy of y and from what was saved. Each has its input's shape;
   * null, or anything, where `wanted` is false.
   */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: readonly Tensor[],
    wanted: readonly boolean[],
  ) => readonly (Tensor | null)[];
}

/**
 * Runs the forward pass of `rule` and, where `ops` is a tape, records it as a whole, with the gradient that `rule` gives. The
 * result belongs to the innermost scope. `gradcheck` holds it to finite differences as any function of ops.
 *
 * Throws `A-CUSTOM` when the forward pass makes anything but a float tensor, takes a tracked tensor that it was not handed, or
 * uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`. The backward pass throws `A-CUSTOM`
 * when `pull` leaves out a gradient that is wanted, `A-RULE` for one of another shape.
 */
export function customGradient(ops: Ops, rule: CustomGradient, inputs: readonly Tensor[]): Tensor {
  const refuse: Refuse = (problem) => new SidenetError("A-CUSTOM", `${rule.name}: ${problem}.`);
  const device = ops instanceof Tape ? ops.device : inputs[0]?.device;
  if (!device) throw refuse("it has no inputs");
  const forward = (given: Ops, handed: readonly Tensor[]): ForwardResult => {
    const result = rule.forward(given, ...handed);
    const { y, saves } = result && "saves" in result ? result : { y: result, saves: [] };
    return { y: checkResult(y, refuse), saves };
  };
  return device.scope(
    () => {
      if (!(ops instanceof Tape)) return forward(ops, inputs).y;
      const { output, saves } = besideTape(ops, refuse, () =>
        withHandles(device, inputs, (handles) => {
          const { y, saves } = forward(plainOps(ops, handles, refuse), handles);
          // An input handed back is still a value of its own; one that is saved is the caller's tensor, not our handle.
          const output = handles.includes(y) ? device.ops.reshape(y, { shape: y.shape }) : y;
          const own = (tensor: Tensor) =>
            tensor === y ? output : (inputs[handles.indexOf(tensor)] ?? tensor);
          return { output, saves: saves.map(own) };
        }),
      );
      ops.recordWhole(`custom ${rule.name}`, inputs, output, {
        saves,
        isFresh: false,
        pull: (ruleOps, dy, saved, tracked) => {
          const wanted = inputs.map((_, i) => tracked.includes(i));
          const gradients = rule.pull(ruleOps, dy, saved, wanted);
          return tracked.map((i) => gradients[i] ?? raise(refuse(`its pull has no gradient of input ${i}`)));
        },
      });
      return output;
    },
    { label: rule.name },
  );
}

function raise(error: Error): never {
  throw error;
}
