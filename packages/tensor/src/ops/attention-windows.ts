/** Windows over the operands of attention, for tensors that are larger than one binding. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext, RowRange } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import type { AttentionExtents } from "./attention-kernels.ts";

/** Either everything, or some queries of one sequence with all of its keys. */
export interface Window {
  readonly extents: AttentionExtents;
  /** Where the window starts in lse and the statistics, which are bound whole. */
  readonly firstQuery: number;
  /** Where the window starts in the mask, which is bound whole. */
  readonly firstKey: number;
  /** The window of a tensor [B,T,..]. */
  readonly ofQueries: (tensor: Tensor) => Tensor;
  /** The window of a tensor [B,S,..]. */
  readonly ofKeys: (tensor: Tensor) => Tensor;
}

/** The window that covers everything. */
export const wholeWindow = (extents: AttentionExtents): Window => {
  const all = (tensor: Tensor) => tensor;
  return { extents, firstQuery: 0, firstKey: 0, ofQueries: all, ofKeys: all };
};

/**
 * Windows such that each of the tensors by query, [B,T,..], and by key, [B,S,..], fits a binding. Throws `T-TOO-LARGE` if the
 * keys of one sequence do not fit.
 */
export function windowsOf(
  k: KernelContext,
  extents: AttentionExtents,
  byQuery: readonly Tensor[],
  byKey: readonly Tensor[],
): Window[] {
  const { B, T, S, H, queryOffset } = extents;
  const bytes = (tensor: Tensor) => tensor.size * elementBytes(tensor.dtype);
  const largest = Math.max(...[...byQuery, ...byKey].map(bytes));
  if (largest <= k.profile.maxBindingBytes) return [wholeWindow(extents)];
  return Array.from({ length: B }, (_, b): Window[] => {
    const sequence: RowRange = { start: b, count: 1 };
    const ofKeys = (tensor: Tensor) => k.rows(tensor, B, sequence);
    k.split(1, byKey.map(ofKeys)); // throws if they do not fit
    const queries = byQuery.map((tensor) => k.rows(tensor, B, sequence));
    return k.split(T, queries).map(({ start, count }) => ({
      extents: { ...extents, B: 1, T: count, queryOffset: queryOffset + start },
      firstQuery: (b * T + start) * H,
      firstKey: b * S,
      ofQueries: (tensor) => k.rows(tensor, B * T, { start: b * T + start, count }),
      ofKeys,
    }));
  }).flat();
}
