import { SidenetError } from "./errors.ts";

/** Row-major extents; [] is a scalar. */
export type Shape = readonly number[];

/** Number of elements. */
export function sizeOf(shape: Shape): number {
  let size = 1;
  for (const extent of shape) size *= extent;
  return size;
}

/** A shape as messages show it: "[2, 3]". */
export const formatShape = (shape: Shape): string => `[${shape.join(", ")}]`;

/** Whether two shapes are equal, axis by axis. */
export const sameShape = (a: Shape, b: Shape): boolean =>
  a.length === b.length && a.every((extent, axis) => extent === b[axis]);

/** Throws `T-SHAPE` unless the shape is an array of integers >= 0. */
export function checkShape(shape: Shape, what: string): void {
  if (!Array.isArray(shape)) {
    throw new SidenetError(
      "T-SHAPE",
      `${what}: the shape is ${shape}, wanted an array of extents, such as [2, 3].`,
    );
  }
  for (const extent of shape) {
    if (!Number.isInteger(extent) || extent < 0) {
      throw new SidenetError(
        "T-SHAPE",
        `${what}: extent ${extent} in ${formatShape(shape)} is not a whole number >= 0.`,
      );
    }
  }
}
