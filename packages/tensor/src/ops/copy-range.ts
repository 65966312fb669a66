/** Copies ranges within tensors whose rows may be larger than a binding. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext, RowRange } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/**
 * Calls `window` with ranges of rows if a binding holds many rows, with a single range if all tensors fit whole. If it holds few
 * rows or less than one, calls `row` for each row instead, which is to copy it by `copyRange`.
 */
export function byRows(
  k: KernelContext,
  rows: number,
  tensors: readonly Tensor[],
  { window, row }: { window: (range: RowRange) => void; row: (index: number) => void },
): void {
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const largest = Math.max(...tensors.map(({ size, dtype }) => size * elementBytes(dtype)));
  if (largest <= maxBindingBytes) window({ start: 0, count: rows });
  else if (largest <= (rows * maxBindingBytes) / bindingAlignment) {
    for (const range of k.split(rows, tensors)) window(range);
  } else for (let index = 0; index < rows; index++) row(index);
}

/** Start in the source and in the target, and length, in elements. */
interface CopiedRange {
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

/** y[to + i] = x[from + i] for i < count, in flat elements; copies as much as fits a binding at a time. */
export function copyRange(k: KernelContext, x: Tensor, y: Tensor, { from, to, count }: CopiedRange): void {
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const largest = Math.max(elementBytes(x.dtype), elementBytes(y.dtype));
  const maxCount = Math.floor((maxBindingBytes - bindingAlignment) / largest);
  /** A window with `size` elements from `start` on. It starts at an aligned offset, `shift` elements before them. */
  const part = (tensor: Tensor, start: number, size: number) => {
    const shift = start % (bindingAlignment / elementBytes(tensor.dtype));
    const window = k.rows(tensor, tensor.size, { start: start - shift, count: size + shift });
    return { window, shift };
  };
  for (let done = 0; done < count; done += maxCount) {
    const size = Math.min(maxCount, count - done);
    const source = part(x, from + done, size);
    const target = part(y, to + done, size);
    k.run("slice/forward", {
      bind: { x: source.window, y: target.window },
      params: { size, length: size, inner: 1, start: source.shift, count: size, first: target.shift },
      grid: Math.ceil(size / 64),
    });
  }
}
