/** Copies rows between tensors whose rows have different lengths, and may be larger than a binding. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { runFill } from "./elementwise-kernels.ts";

/** Both tensors have `rows` rows; of each, `size` elements are copied, from `fromAt` to `toAt` on. */
interface RowCopy {
  readonly rows: number;
  readonly size: number;
  readonly fromAt?: number;
  readonly toAt?: number;
}

/** Dispatches a copy of rows; with `pad`, y gets zeros in the rest of its rows. */
export function copyRows(
  k: KernelContext,
  x: Tensor,
  y: Tensor,
  { rows, size: row, fromAt = 0, toAt = 0 }: RowCopy,
  entry: "copy" | "pad" = "copy",
): void {
  const [fromRow, toRow] = [x.size / Math.max(rows, 1), y.size / Math.max(rows, 1)];
  const { maxBindingBytes, bindingAlignment } = k.profile;
  const largest = Math.max(...[x, y].map(({ size, dtype }) => size * elementBytes(dtype)));
  // If a binding holds few rows or less than one, each is copied by itself.
  if (largest > maxBindingBytes && largest > (rows * maxBindingBytes) / bindingAlignment) {
    if (entry === "pad") runFill(k, y, 0);
    for (let r = 0; r < rows; r++) {
      copyRange(k, x, y, { from: r * fromRow + fromAt, to: r * toRow + toAt, count: row });
    }
    return;
  }
  const ranges = largest <= maxBindingBytes ? [{ start: 0, count: rows }] : k.split(rows, [x, y]);
  for (const range of ranges) {
    const size = range.count * (entry === "pad" ? toRow : row);
    const bind = { x: k.rows(x, rows, range), y: k.rows(y, rows, range) };
    run(k, entry, bind, { size, row, fromAt, fromRow, toAt, toRow });
  }
}

/** Runs the kernel over vectors of four where all extents and places, in elements, are multiples of that. */
function run(
  k: KernelContext,
  entry: "copy" | "pad",
  bind: Record<"x" | "y", Tensor>,
  extents: Record<"size" | "row" | "fromAt" | "fromRow" | "toAt" | "toRow", number>,
): void {
  const WIDTH = Object.values(extents).every((extent) => extent % 4 === 0) ? 4 : 1;
  const params = Object.fromEntries(Object.entries(extents).map(([name, extent]) => [name, extent / WIDTH]));
  k.run(`copy-rows/${entry}`, { bind, params, consts: { WIDTH }, grid: Math.ceil(params.size / 64) });
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
    const extents = { size, row: size, fromAt: source.shift, fromRow: 0, toAt: target.shift, toRow: 0 };
    run(k, "copy", { x: source.window, y: target.window }, extents);
  }
}
