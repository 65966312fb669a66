import type { DType } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import type { KernelCall } from "../op.ts";
import { Tensor } from "../tensor.ts";
import { EMPTY_BYTES } from "./bind-groups.ts";
import type { KernelSource } from "./kernel-source.ts";

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
  const rows = typeof grid === "number" ? Math.max(1, Math.ceil(grid / limit)) : 1;
  const [x, y, z] = typeof grid === "number" ? [Math.ceil(grid / rows), rows, 1] : grid;
  if (x * y * z === 0) return null;
  if (Math.max(x, y, z) > limit) {
    const cure = "Spread them over more axes, or give a workgroup more to do.";
    throw new SidenetError(
      "T-TOO-LARGE",
      `${kernel}: ${x} x ${y} x ${z} workgroups, an axis holds ${limit}. ${cure}`,
    );
  }
  return [x, y, z];
}

/** Whether tensors in the same memory have elements in common. */
const overlap = (a: Tensor, b: Tensor): boolean =>
  a.offset < b.offset + b.size && b.offset < a.offset + a.size;

/**
 * Elements of the bindings in the order of the call. With a binding of fewer than a proven call had, the GPU may refuse the kernel.
 */
export const extentsOf = ({ bind }: KernelCall): number[] =>
  Object.values(bind).map((tensor) => tensor?.size ?? EMPTY_BYTES / 4);

/**
 * Checks a call from outside the op table and returns its tensors, whose device and liveness the caller has to check. Throws
 * `T-KERNEL` for a binding that is not a tensor, for memory that one binding writes and another reads or writes, for an integer
 * parameter that its type cannot hold, and for a malformed grid.
 */
export function checkCall(
  kernel: string,
  { bind, params, grid }: KernelCall,
  { bindings, params: fields }: KernelSource,
): readonly Tensor[] {
  if (!bind || !params) throw new SidenetError("T-KERNEL", `${kernel}: wanted { bind, params, grid }.`);
  const extents = typeof grid === "number" ? [grid] : Array.isArray(grid) && grid.length === 3 ? grid : null;
  if (!extents?.every((extent) => Number.isInteger(extent) && extent >= 0)) {
    throw new SidenetError(
      "T-KERNEL",
      `${kernel}: the grid is ${grid}, wanted a number of workgroups, or three.`,
    );
  }
  for (const { name, type } of fields) {
    if (type === "f32" || params[name] === undefined) continue; // a missing one is refused where parameters are packed
    const value = Number(params[name]);
    if ((type === "u32" ? value >>> 0 : value | 0) === value) continue;
    throw new SidenetError("T-KERNEL", `${kernel}: parameter ${name} is ${value}, wanted ${type}.`);
  }
  const named = Object.entries(bind).flatMap(([name, tensor]) => {
    if (tensor === null) return [];
    if (tensor instanceof Tensor) return { name, tensor };
    throw new SidenetError("T-KERNEL", `${kernel}: ${tensor} is bound to ${name}, wanted a tensor or null.`);
  });
  const isWritten = (name: string) => bindings.get(name)?.writable === true;
  for (const [i, { name, tensor }] of named.entries()) {
    const other = named.slice(0, i).find((earlier) => {
      if (earlier.tensor.storage !== tensor.storage) return false;
      if (!isWritten(earlier.name) || !isWritten(name)) return isWritten(earlier.name) || isWritten(name);
      return overlap(earlier.tensor, tensor);
    });
    if (!other) continue;
    const writers = isWritten(other.name) && isWritten(name) ? "both write" : "one of them writes";
    throw new SidenetError(
      "T-KERNEL",
      `${kernel}: ${other.name} and ${name} are bound to the same memory, which ${writers}. Bind a copy to the other.`,
    );
  }
  return named.map(({ tensor }) => tensor);
}
