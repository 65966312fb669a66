import type { DType } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import type { KernelCall } from "../op.ts";
import { Tensor } from "../tensor.ts";

/** Element types by binding: what makes one variant of a kernel different from another, besides constants and bodies. */
export function dtypesOf({ bind }: KernelCall): Record<string, DType> {
  const dtypes: Record<string, DType> = {};
  for (const name in bind) dtypes[name] = bind[name]?.dtype ?? "f32";
  return dtypes;
}

/**
 * Workgroup extents within the limit of an axis: a plain count past it becomes a rectangle, and kernels skip its tail. Null:
 * there is nothing to run. Throws `T-TOO-LARGE`.
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
 * A call by somebody else than an op: throws `T-KERNEL` for what is bound and is no tensor, and for a grid that is none. Who
 * asks checks that the tensors are its own, and live.
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
