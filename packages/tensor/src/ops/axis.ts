import { SidenetError } from "../errors.ts";
import { formatShape, type Shape, sizeOf } from "../shape.ts";
import type { TestRandom } from "../test-random.ts";

/** Normalizes an axis to 0 .. rank - 1; negative ones count from the end. Throws `T-ATTR` for an axis out of range. */
export function axisOf(shape: Shape, axis: number): number {
  const found = axis < 0 ? axis + shape.length : axis;
  if (Number.isInteger(axis) && found >= 0 && found < shape.length) return found;
  throw new SidenetError(
    "T-ATTR",
    `axis ${axis} is not one of the ${shape.length} axes of ${formatShape(shape)}.`,
  );
}

/** A shape as [outer, length, inner] around one axis; null means one axis of all elements. Throws `T-ATTR`. */
export function aroundAxis(
  shape: Shape,
  axis: number | null,
): { outer: number; length: number; inner: number } {
  if (axis === null) return { outer: 1, length: sizeOf(shape), inner: 1 };
  const at = axisOf(shape, axis);
  return { outer: sizeOf(shape.slice(0, at)), length: shape[at], inner: sizeOf(shape.slice(at + 1)) };
}

export function withoutAxis(shape: Shape, axis: number | null): Shape {
  if (axis === null) return [];
  const at = axisOf(shape, axis);
  return [...shape.slice(0, at), ...shape.slice(at + 1)];
}

export function replaceAxis(shape: Shape, axis: number, extent: number): Shape {
  const at = axisOf(shape, axis);
  return shape.map((own, i) => (i === at ? extent : own));
}

/** Draws null or an axis of a shape of this rank, counted from either end. */
export function drawAxis(pick: TestRandom, rank: number): number | null {
  if (rank === 0 || pick.chance(0.2)) return null;
  return pick.int(0, rank - 1) - (pick.chance(0.3) ? rank : 0);
}
