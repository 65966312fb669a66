/** The errors of a tape, in one place so that they read alike: what was called, why it fails, and what to do instead. */
import { formatShape, type Shape, SidenetError, sizeOf, Tensor } from "@sidenet/tensor";
import { IN_PLACE, SECOND_ORDER } from "./rules/grad-row.ts";

export const refuseLeaf = (name: string, problem: string): SidenetError =>
  new SidenetError("A-LEAF", `${name} cannot be trained: ${problem}.`);

export const refuseClosed = (what: string, state: "spent" | "disposed"): SidenetError =>
  new SidenetError(
    "A-CLOSED",
    `${what}, but this tape ${state === "spent" ? "has run its backward pass" : "was disposed"}. ` +
      "A tape is for one step: make a new one from the same parameters.",
  );

export const refuseSecondBackward = (): SidenetError =>
  new SidenetError(
    "A-TWICE",
    "backward was called a second time, but the first call freed what the tape had saved. For the sum of two losses, add " +
      "them and call backward once; for another step, make a new tape.",
  );

export const refuseSecondOrder = (op: string, what: string): SidenetError =>
  new SidenetError(
    "A-SECOND-ORDER",
    `${op}: ${what}. Gradients of gradients are not supported: use device.ops for arithmetic on gradients.`,
  );

export const refuseInPlace = (op: string, input: string, why: string): SidenetError =>
  new SidenetError(
    "A-IN-PLACE",
    `${op} writes in place, but ${input} ${why}. Use an op with a result of its own, or device.ops outside the tape's ` +
      "forward and backward passes.",
  );

export const refuseChanged = (op: string, operand: string, tensor: string): SidenetError =>
  new SidenetError(
    "A-CHANGED",
    `${op} saved its ${operand} (${tensor}), which was changed in place before the backward pass: the gradient would be that ` +
      "of other values. Call backward before the update, or give the op a copy.",
  );

export function refuseGradient(op: string, input: string, made: unknown, wanted: Shape): SidenetError {
  const isLarger = made instanceof Tensor && made.size > sizeOf(wanted);
  return new SidenetError(
    "A-RULE",
    `the gradient rule of ${op} made ${made instanceof Tensor ? formatShape(made.shape) : made} for input ${input} of ` +
      `${formatShape(wanted)}. This is a mistake in the rule: ` +
      (isLarger ? "where an input was broadcast, it sums with unbroadcast." : "gradcheck the op."),
  );
}

/** The error for tracked inputs of an op outside the table that was defined without gradients. */
export const refuseNoGradientRow = (op: string, inputs: readonly string[]): SidenetError =>
  new SidenetError(
    "A-NO-GRADIENT",
    `${op}: ${inputs.join(", ")} is tracked, but the row defines no gradients. Define them with withGradient, or call it ` +
      "through device.ops if none is wanted.",
  );

/** The error for tracked inputs that have no gradient, alone or because their op has none. */
export function refuseNoGradient(op: string, inputs: readonly string[], reason: string): SidenetError {
  const names = inputs.join(", ");
  if (reason === IN_PLACE.none) return refuseInPlace(op, names, "is tracked");
  if (reason === SECOND_ORDER.none) return refuseSecondOrder(op, `${names} is tracked`);
  return new SidenetError(
    "A-NO-GRADIENT",
    `${op}: ${names} is tracked, but has no gradient here (${reason}). Call ${op} of device.ops if none is wanted.`,
  );
}

export const refuseUntrackedLoss = (loss: Tensor): SidenetError =>
  new SidenetError(
    "A-UNTRACKED",
    `backward was given ${loss}, which this tape does not track. Either no trainable tensor leads to it, or it was ` +
      "computed with device.ops instead of the tape's ops.",
  );

export const refuseLossShape = (loss: Tensor): SidenetError =>
  new SidenetError(
    "A-LOSS-SHAPE",
    `backward was given ${loss}; without an upstream gradient, a loss must have one element. Sum it, or pass its gradient as upstream.`,
  );

export const refuseUpstream = (loss: Tensor, upstream: Tensor): SidenetError =>
  new SidenetError(
    "A-UPSTREAM",
    `the upstream gradient is ${upstream}, wanted ${loss.dtype} ${formatShape(loss.shape)} like the value it belongs to.`,
  );

export function refuseUnused(names: readonly string[]): SidenetError {
  const shown = names.slice(0, 8).join(", ") + (names.length > 8 ? `, and ${names.length - 8} more` : "");
  return new SidenetError(
    "A-UNUSED",
    `no gradient reaches ${shown}. Check that the forward pass used the tape's ops, and this very tensor, where it is ` +
      "trained; pass allowUnused if some parameters are meant to have no gradient.",
  );
}
