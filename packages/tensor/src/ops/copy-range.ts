/** Copies within tensors of any size: where windows of whole rows would not fit a binding. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext, RowRange } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/**
 * Calls `window` with ranges of rows of which a binding holds many: one range when all tensors fit whole. Where it holds
 * few rows, or less than one, calls `row` with each, to copy it by `copyRange`.
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

/** Where a range of consecutive elements begins, and how many they are. */
interface CopiedRange {
  readonly from: number;
  readonly to: number;
  readonly count: number;
}

/** y[to + i] = x[from + i] for i < count, both as flat elements, a binding's worth at a time. */
export function copyRange(k: KernelContext, x: Tensor, y: Tensor, { from, to, count }: CopiedRange): void {
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const largest = Math.max(elementBytes(x.dtype), elementBytes(y.dtype));
  const most = Math.floor((maxBindingBytes - bindingAlignment) / largest);
  /** `size` elements from `start`, in a window that begins where a binding may: `shift` of them stand before. */
  const part = (tensor: Tensor, start: number, size: number) => {
    const shift = start % (bindingAlignment / elementBytes(tensor.dtype));
    const window = k.rows(tensor, tensor.size, { start: start - shift, count: size + shift });
    return { window, shift };
  };
  for (let done = 0; done < count; done += most) {
    const size = Math.min(most, count - done);
    const source = part(x, from + done, size);
    const target = part(y, to + done, size);
    k.run("slice/forward", {
      bind: { x: source.window, y: target.window },
      params: { size, length: size, inner: 1, start: source.shift, count: size, first: target.shift },
      grid: Math.ceil(size / 64),
    });
  }
}
