import { type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import {
  checkResult,
  deviceOf,
  type ForwardResult,
  type Refuse,
  runUnrecorded,
} from "./recorded-function.ts";
import { Tape } from "./tape.ts";

/**
 * A function with a gradient of its own (PyTorch: `autograd.Function`; JAX: `custom_vjp`), where a composition of recorded
 * ops would be slower, less exact, or need more memory.
 */
export interface CustomGradient {
  /** Its name in records, messages and scopes. */
  readonly name: string;
  /**
   * Computes one float tensor from the inputs, with the ops it is given and, on WebGPU, kernels of the caller's. When it
   * returns a tensor alone, nothing is saved.
   */
  readonly forward: (ops: Ops, ...inputs: Tensor[]) => Tensor | ForwardResult;
  /**
   * The backward pass: gradients of the inputs, in their order, from the gradient dy of y and from what was saved. Each has
   * its input's shape. Where `wanted` is false the input is not tracked and the entry is ignored: null will do.
   */
  readonly pull: (
    ops: Ops,
    dy: Tensor,
    saved: readonly Tensor[],
    wanted: readonly boolean[],
  ) => readonly (Tensor | null)[];
}

/**
 * Runs the forward pass of `rule` and, where `ops` is a tape, records it as one op with the gradient that `rule` gives. The
 * result belongs to the innermost scope. `gradcheck` compares it with finite differences like any function of ops. `forward`
 * may use an input through a closure too, such as the weights of a block.
 *
 * Throws `A-CUSTOM` when the forward pass makes anything but a float tensor, uses a tracked tensor that is not among the
 * inputs, or uses the tape; `A-IN-PLACE` when it writes into an input; `A-CLOSED`, `A-SECOND-ORDER`. The backward pass throws
 * `A-CUSTOM` when `pull` leaves out a gradient that is wanted, and `A-RULE` for one of another shape.
 */
export function customGradient(ops: Ops, rule: CustomGradient, inputs: readonly Tensor[]): Tensor {
  const refuse: Refuse = (problem) => new SidenetError("A-CUSTOM", `${rule.name}: ${problem}.`);
  const device = deviceOf(ops, inputs, refuse);
  const forward = (given: Ops, operands: readonly Tensor[]): ForwardResult => {
    const result = rule.forward(given, ...operands);
    const { y, saves } = result && "saves" in result ? result : { y: result, saves: [] };
    return { y: checkResult(y, refuse), saves };
  };
  return device.scope(
    () => {
      if (!(ops instanceof Tape)) return forward(ops, inputs).y;
      const { y, saves } = runUnrecorded(ops, inputs, refuse, forward);
      ops.recordFunction(`custom ${rule.name}`, inputs, y, {
        saves,
        isFresh: false,
        pull: (ruleOps, dy, saved, tracked) => {
          const wanted = inputs.map((_, i) => tracked.includes(i));
          const gradients = rule.pull(ruleOps, dy, saved, wanted) as ReturnType<typeof rule.pull> | undefined;
          return tracked.map((i) => {
            const gradient = gradients?.[i];
            if (!gradient) throw refuse(`its pull has no gradient of input ${i}`);
            if (gradient.disposed) throw refuse(`its pull freed the gradient of input ${i}`);
            return gradient;
          });
        },
      });
      return y;
    },
    { label: rule.name },
  );
}
