import { type DType, joinAxes, type Ops, sameShape, sizeOf, type Tensor } from "@sidenet/tensor";
import type { PullContext } from "./grad-row.ts";

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

/**
 * The gradient of an operand that was broadcast: that of the result, as `local` makes it of dy, summed over the axes along which
 * the operand was repeated. dy is widened where there is such a sum.
 */
export function unbroadcast(
  ops: Ops,
  dy: Tensor,
  { shape, dtype }: PullContext<unknown>,
  local: (dy: Tensor) => Tensor = (wide) => wide,
): Tensor {
  if (sameShape(dy.shape, shape)) return local(dy);
  const x = local(widen(ops, dy, dtype));
  const axes = joinAxes(x.shape, [shape]);
  let part = ops.reshape(x, { shape: axes.map(({ extent }) => extent) });
  for (let axis = axes.length - 1; axis >= 0; axis--) {
    if (!axes[axis].has[0]) part = ops.sum(part, { axis });
  }
  return ops.reshape(part, { shape });
}

/** The gradient of a bias [C] that was added to each row. */
export const biasGradient = (ops: Ops, dy: Tensor, { dtype }: PullContext<unknown>): Tensor =>
  ops.sum(widen(ops, asRows(ops, dy), dtype), { axis: 0 });
