import { SidenetError } from "./errors.ts";
import { formatShape, type Shape, sameShape } from "./shape.ts";

/**
 * The shape that operands broadcast to, by NumPy's rule: shapes are aligned at their last axes, missing axes count as 1,
 * and an axis of 1 repeats. Throws `T-SHAPE` naming both shapes where extents differ and neither is 1.
 */
export function broadcastShape(op: string, shapes: readonly Shape[]): Shape {
  const [first] = shapes;
  if (first !== undefined && shapes.every((shape) => sameShape(shape, first))) return first; // nearly always
  const rank = Math.max(0, ...shapes.map((shape) => shape.length));
  return Array.from({ length: rank }, (_, axis) => {
    let extent = 1;
    for (const shape of shapes) {
      const own = shape[axis - rank + shape.length] ?? 1;
      if (own === 1 || own === extent) continue;
      if (extent !== 1) {
        throw new SidenetError(
          "T-SHAPE",
          `${op}: ${shapes.map(formatShape).join(" and ")} do not broadcast: extents ${extent} and ${own} meet. ` +
            "Axes are aligned from the last; reshape one operand, with 1 where it should repeat.",
        );
      }
      extent = own;
    }
    return extent;
  });
}

/** The element of an operand at element `index` of the shape that it was broadcast to. */
export function broadcastSource(index: number, full: Shape, own: Shape): number {
  let source = 0;
  let stride = 1;
  let rest = index;
  for (let axis = 1; axis <= own.length; axis++) {
    const extent = full[full.length - axis];
    const ownExtent = own[own.length - axis];
    if (ownExtent !== 1) source += (rest % extent) * stride;
    stride *= ownExtent;
    rest = Math.floor(rest / extent);
  }
  return source;
}

/** A run of adjacent axes; each operand either has all of them or repeats along all of them. */
export interface BroadcastAxis {
  readonly extent: number;
  readonly has: readonly boolean[];
}

/** The axes of `full` without those of extent 1; adjacent axes are merged where the same operands have them. */
export function joinAxes(full: Shape, operands: readonly Shape[]): BroadcastAxis[] {
  const joined: BroadcastAxis[] = [];
  for (const [axis, extent] of full.entries()) {
    if (extent === 1) continue;
    const has = operands.map((shape) => (shape[axis - full.length + shape.length] ?? 1) !== 1);
    const last = joined.at(-1);
    if (last?.has.every((own, i) => own === has[i])) {
      joined[joined.length - 1] = { extent: last.extent * extent, has };
    } else joined.push({ extent, has });
  }
  return joined;
}
