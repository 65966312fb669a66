import type { Ops, Tensor } from "@sidenet/tensor";
import { type BlockContext, type BlockShape, type BlockWeights, block } from "./block.ts";

/** Runs a function of tensors and records it as a whole, to be computed again in the backward pass. */
export type RunLayer = (fn: (ops: Ops, ...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]) => Tensor;

/**
 * A block that is recorded as a whole, so that nothing it makes is kept for the backward pass. `trained` are the tensors
 * that are trained in it; `weightsWith` gives the block's weights with them, or other handles on them, in their places.
 */
export function recomputedBlock(
  run: RunLayer,
  shape: BlockShape,
  weightsWith: (trained: readonly Tensor[]) => BlockWeights,
  trained: readonly Tensor[],
  x: Tensor,
  { rope, keyMask, segments, offset }: BlockContext,
): Tensor {
  // Everything that may have been freed when the block is computed again is an input.
  return run(
    (ops, handle, cos, sin, ...rest) => {
      const marks = {
        keyMask: keyMask ? rest.shift()! : null,
        segments: segments ? rest.shift()! : null,
      };
      return block(ops, shape, weightsWith(rest), handle, { rope: { cos, sin }, ...marks, offset });
    },
    [x, rope.cos, rope.sin, ...[keyMask, segments].filter((mark) => mark !== null), ...trained],
  );
}
