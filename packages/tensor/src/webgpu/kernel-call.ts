import type { DType } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import type { KernelCall } from "../op.ts";
import { Tensor } from "../tensor.ts";

/** Element types by binding, which select the variant of a kernel together with constants and bodies. */
export function dtypesOf({ bind }: KernelCall): Record<string, DType> {
  const dtypes: Record<string, DType> = {};
  for (const name in bind) dtypes[name] = bind[name]?.dtype ?? "f32";
  return dtypes;
}

/**
 * Workgroup extents within the limit per axis: a count beyond it becomes a rectangle, whose excess workgroups return at once.
 * null if there is nothing to run. Throws `T-TOO-LARGE`.
 */
export function foldGrid(
  kernel: string,
  grid: KernelCall["grid"],
  limit: number,
): readonly [number, number, number] | null {
  if (typeof grid === "number") {
    if (grid === 0) return null;
    const y = Math.ceil(grid / limit);
    return [Math.ceil(grid / y), y, 1];
  }
  if (grid.some((extent) => extent === 0)) return null;
  if (grid.some((extent) => extent > limit)) {
    throw new SidenetError(
      "T-TOO-LARGE",
      `${kernel}: ${grid.join(" x ")} workgroups, an axis holds ${limit}.`,
    );
  }
  return grid;
}

/**
 * Checks a call from outside the op table and returns its tensors, whose device and liveness the caller has to check. Throws
 * `T-KERNEL` for a binding that is not a tensor and for a malformed grid.
 */
export function checkCall(kernel: string, { bind, grid }: KernelCall): readonly Tensor[] {
  const extents = typeof grid === "number" ? [grid] : Array.isArray(grid) && grid.length === 3 ? grid : null;
  if (!extents?.every((extent) => Number.isInteger(extent) && extent >= 0)) {
    throw new SidenetError(
      "T-KERNEL",
      `${kernel}: the grid is ${grid}, wanted a number of workgroups, or three.`,
    );
  }
  return Object.entries(bind).flatMap(([name, tensor]) => {
    if (tensor === null) return [];
    if (tensor instanceof Tensor) return tensor;
    throw new SidenetError("T-KERNEL", `${kernel}: ${tensor} is bound to ${name}, wanted a tensor or null.`);
  });
}
