import { type DType, joinAxes, type Ops, type Shape, sameShape, sizeOf, type Tensor } from "@sidenet/tensor";

/** x[N..,C] as a view [N,C]. */
export function asRows(ops: Ops, x: Tensor): Tensor {
  if (x.shape.length === 2) return x;
  const columns = x.shape[x.shape.length - 1];
  return ops.reshape(x, { shape: [sizeOf(x.shape.slice(0, -1)), columns] });
}

/** Casts to f32 where the gradient is f32 (`dtype`): f16 would lose the small terms of a long sum. */
export function widen(ops: Ops, x: Tensor, dtype: DType): Tensor {
  return dtype === "f32" && x.dtype !== "f32" ? ops.cast(x, { to: "f32" }) : x;
}

/** The gradient of broadcasting: sums x over the axes along which an operand of `shape` was repeated. */
export function sumTo(ops: Ops, x: Tensor, shape: Shape): Tensor {
  if (sameShape(x.shape, shape)) return x;
  const axes = joinAxes(x.shape, [shape]);
  let part = ops.reshape(x, { shape: axes.map(({ extent }) => extent) });
  for (let axis = axes.length - 1; axis >= 0; axis--) {
    if (!axes[axis].has[0]) part = ops.sum(part, { axis });
  }
  return ops.reshape(part, { shape });
}

/** dy, widened where `sumTo` will sum it. */
export const widenForSum = (ops: Ops, dy: Tensor, shape: Shape, dtype: DType): Tensor =>
  sameShape(dy.shape, shape) ? dy : widen(ops, dy, dtype);
