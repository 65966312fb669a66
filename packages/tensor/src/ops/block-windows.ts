/** Windows over tensors that are quantized in blocks: over their elements, and over what is stored per block or per byte. */
import { type KernelContext, type RowRange, rangesOf } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** Windows of `size` elements that start at multiples of `step` and fit a binding at `bytes` per element. */
export function windows(k: KernelContext, size: number, bytes: number, step: number): RowRange[] {
  const max = Math.max(step, Math.floor(k.profile.maxBindingBytes / bytes / step) * step);
  return rangesOf(size, max);
}

export const part = (k: KernelContext, tensor: Tensor, { start, count }: RowRange, per: number): Tensor =>
  k.rows(tensor, tensor.size, { start: start / per, count: Math.ceil(count / per) });
