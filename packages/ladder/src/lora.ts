/** Low-rank adaptation (methods.md, 4): a trainable product of two small matrices beside a frozen layer. */
import type { Tensor } from "@sidenet/tensor";
import type { Projection } from "./projection.ts";

export interface LowRank {
  /** A [r,in] */
  readonly a: Tensor;
  /** B [out,r] */
  readonly b: Tensor;
  /** alpha / r, or alpha / √r with rsLoRA */
  readonly scale: number;
}

/** base(x) + scale · (x · Aᵀ) · Bᵀ; whatever the base's weight is, float or NF4. */
export function withLowRank(base: Projection, { a, b, scale }: LowRank): Projection {
  return (ops, x) => ops.add(base(ops, x), ops.scale(ops.linear(ops.linear(x, a), b), { factor: scale }));
}
