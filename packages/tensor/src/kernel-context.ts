import type { Device } from "./device.ts";
import { elementBytes } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import { type KernelContext, type RowRange, rangesOf, type WindowPreference } from "./op.ts";
import { formatShape } from "./shape.ts";
import type { Tensor } from "./tensor.ts";

const greatestCommonDivisor = (a: number, b: number): number =>
  b === 0 ? a : greatestCommonDivisor(b, a % b);

/** The maximum rows of a window over one tensor of `rows` rows, and the multiple of rows at which a window may start. */
function windowRule(
  device: Device,
  op: string,
  tensor: Tensor,
  rows: number,
  maxBytes: number,
): { max: number; step: number } {
  const { maxBindingBytes, bindingAlignment } = device.profile;
  const rowBytes = (tensor.size / rows) * elementBytes(tensor.dtype);
  const wanted = Math.min(maxBindingBytes, Math.max(maxBytes, bindingAlignment * rowBytes));
  const max = rowBytes === 0 ? rows : Math.floor(wanted / rowBytes);
  if (max < 1) {
    throw new SidenetError(
      "T-TOO-LARGE",
      `${op}: one row of ${tensor} takes ${rowBytes} bytes, a binding on this adapter holds ${maxBindingBytes}.`,
    );
  }
  const step =
    Number.isInteger(rowBytes) && rowBytes > 0
      ? bindingAlignment / greatestCommonDivisor(bindingAlignment, rowBytes)
      : 1;
  return { max, step };
}

/** `KernelContext.split`: ranges of rows whose windows of all tensors fit a binding and start at an aligned offset. */
function splitRows(
  device: Device,
  op: string,
  rows: number,
  tensors: readonly (Tensor | null)[],
  { maxBytes = Number.POSITIVE_INFINITY, multipleOf = 1 }: WindowPreference = {},
): RowRange[] {
  if (rows === 0) return [];
  let max = rows;
  let step = 1;
  for (const tensor of tensors) {
    if (tensor === null) continue;
    const rule = windowRule(device, op, tensor, rows, maxBytes);
    max = Math.min(max, rule.max);
    step = Math.max(step, rule.step); // steps are powers of two: the largest is a multiple of the others
  }
  if (max >= multipleOf) step = Math.max(step, multipleOf);
  if (max < rows) max = Math.floor(max / step) * step;
  if (max < 1) {
    throw new SidenetError(
      "T-TOO-LARGE",
      `${op}: no window of ${tensors
        .filter((t) => t !== null)
        .map((t) => formatShape(t.shape))
        .join(" ")} both fits ` +
        `a binding of ${device.profile.maxBindingBytes} bytes and starts at a multiple of ${device.profile.bindingAlignment}.`,
    );
  }
  return rangesOf(rows, max);
}

/**
 * Calls `body` with a `KernelContext` whose dispatches go to `run`, and frees its workspace and windows afterwards. `op` is the
 * name in messages and in the labels of workspace.
 */
export function withKernelContext(
  device: Device,
  op: string,
  run: KernelContext["run"],
  body: (k: KernelContext) => void,
): void {
  const handles: Tensor[] = [];
  const owned = (tensor: Tensor): Tensor => {
    handles.push(tensor);
    return tensor;
  };
  try {
    body({
      profile: device.profile,
      run,
      temp: (shape, dtype = "f32") =>
        owned(device.keep(device.empty(shape, { dtype, label: `${op}, workspace` }))),
      rows: (tensor, rows, { start, count }) => {
        if (start === 0 && count === rows) return tensor;
        const row = tensor.size / Math.max(rows, 1);
        const shape = tensor.shape[0] === rows ? [count, ...tensor.shape.slice(1)] : [count, row];
        return owned(device.alias(tensor, shape, tensor.offset + start * row));
      },
      texture: (tensor) => owned(device.texture(tensor, `${op}, texture`)),
      split: (rows, tensors, preference) => splitRows(device, op, rows, tensors, preference),
    });
  } finally {
    for (const tensor of handles) tensor.dispose(`the end of ${op}`);
  }
}
