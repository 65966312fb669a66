import type { Ops, Tensor } from "@sidenet/tensor";

/** Some consecutive rows or columns of a weight; both numbers are multiples of 8. */
export interface WeightRange {
  readonly start: number;
  readonly count: number;
}

/** A linear layer, x [..,in] → [..,out], whatever its weight is: floats or NF4, with LoRA or without. */
export interface Projection {
  (ops: Ops, x: Tensor): Tensor;
  /** The layer with some rows of its weight alone, x [..,in] → [..,count]; absent if only the whole can be computed. */
  readonly rows?: (ops: Ops, x: Tensor, range: WeightRange) => Tensor;
  /** With some columns alone, x [..,count] → [..,out]: the results for all columns add up to that of the layer. */
  readonly columns?: (ops: Ops, x: Tensor, range: WeightRange) => Tensor;
}

/** The linear layer of a float weight [out,in] and a bias [out]. */
export function floatProjection(weight: Tensor, bias: Tensor | null): Projection {
  const whole = (ops: Ops, x: Tensor) => ops.linear(x, weight, bias);
  if (bias) return whole;
  const part = (axis: number) => (ops: Ops, x: Tensor, range: WeightRange) =>
    ops.linear(x, ops.slice(weight, { axis, ...range }), null);
  return Object.assign(whole, { rows: part(0), columns: part(1) });
}
