import type { Ops, Tensor } from "@sidenet/tensor";
import { type BlockContext, type BlockShape, type BlockWeights, block } from "./block.ts";

/** Runs a function of tensors under gradient checkpointing: recorded as one op, and run again in the backward pass. */
export type RunLayer = (fn: (ops: Ops, ...inputs: Tensor[]) => Tensor, inputs: readonly Tensor[]) => Tensor;

/**
 * A block under gradient checkpointing: only its inputs are kept for the backward pass. `trained` are the block's trained
 * tensors; `weightsWith` returns the block's weights with these, or other handles on them, applied.
 */
export function recomputedBlock(
  run: RunLayer,
  shape: BlockShape,
  weightsWith: (trained: readonly Tensor[]) => BlockWeights,
  trained: readonly Tensor[],
  x: Tensor,
  { rope, keyMask, segments, offset }: BlockContext,
): Tensor {
  // Tensors that may be freed before the block is computed again must be inputs.
  return run(
    (ops, handle, cos, sin, ...rest) => {
      const masks = {
        keyMask: keyMask ? rest.shift()! : null,
        segments: segments ? rest.shift()! : null,
      };
      return block(ops, shape, weightsWith(rest), handle, { rope: { cos, sin }, ...masks, offset });
    },
    [x, rope.cos, rope.sin, ...[keyMask, segments].filter((mask) => mask !== null), ...trained],
  );
}
