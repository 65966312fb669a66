/** Windows over the operands of attention, for tensors that are larger than one binding. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import type { AttentionExtents } from "./attention-kernels.ts";
import { copyRange } from "./copy-rows.ts";

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

/** Tensors by query, [B,T,..], and by key, [B,S,..]; those of `written` are results. */
interface Operands {
  readonly byQuery: readonly Tensor[];
  readonly byKey: readonly Tensor[];
  readonly written: readonly Tensor[];
}

/**
 * Runs windows such that each tensor fits a binding. A sequence that does not start where a binding may is copied to workspace.
 * Throws `T-TOO-LARGE` if the keys of one sequence do not fit.
 */
export function forWindows(
  k: KernelContext,
  extents: AttentionExtents,
  { byQuery, byKey, written }: Operands,
  run: (window: Window) => void,
): void {
  const { B, T, S, H, queryOffset } = extents;
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const all = new Set([...byQuery, ...byKey]);
  const bytes = (tensor: Tensor) => tensor.size * elementBytes(tensor.dtype);
  if (Math.max(...[...all].map(bytes)) <= maxBindingBytes) {
    run(wholeWindow(extents));
    return;
  }
  const workspace = new Map<Tensor, Tensor>(); // by operand, for the copy of one sequence at a time
  for (let b = 0; b < B; b++) {
    const own = new Map([...all].map((tensor) => [tensor, k.rows(tensor, B, { start: b, count: 1 })]));
    const sequenceOf = (tensor: Tensor) => own.get(tensor)!;
    k.split(1, byKey.map(sequenceOf)); // throws if they do not fit
    const copies = [...own].filter(
      ([, { offset, dtype }]) => (offset * elementBytes(dtype)) % bindingAlignment > 0,
    );
    for (const [tensor, { shape, dtype, size }] of copies) {
      const copy = workspace.get(tensor) ?? k.temp(shape, dtype);
      workspace.set(tensor, copy);
      own.set(tensor, copy);
      if (!written.includes(tensor)) copyRange(k, tensor, copy, { from: b * size, to: 0, count: size });
    }
    for (const { start, count } of k.split(T, byQuery.map(sequenceOf))) {
      run({
        extents: { ...extents, B: 1, T: count, queryOffset: queryOffset + start },
        firstQuery: (b * T + start) * H,
        firstKey: b * S,
        ofQueries: (tensor) => k.rows(sequenceOf(tensor), T, { start, count }),
        ofKeys: sequenceOf,
      });
    }
    for (const [tensor] of copies) {
      const copy = sequenceOf(tensor);
      if (written.includes(tensor))
        copyRange(k, copy, tensor, { from: 0, to: b * copy.size, count: copy.size });
    }
  }
  for (const copy of workspace.values()) copy.dispose();
}
