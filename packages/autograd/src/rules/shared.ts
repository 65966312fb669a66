import { type DType, type Ops, sizeOf, type Tensor } from "@sidenet/tensor";

/** x[N..,C] as [N,C], over the same memory. */
export function asRows(ops: Ops, x: Tensor): Tensor {
  if (x.shape.length === 2) return x;
  const columns = x.shape[x.shape.length - 1];
  return ops.reshape(x, { shape: [sizeOf(x.shape.slice(0, -1)), columns] });
}

/** Casts up to f32 where the gradient will be f32: the terms of a long sum are small, and f16 would lose them. */
export function widen(ops: Ops, x: Tensor, dtype: DType): Tensor {
  return dtype === "f32" && x.dtype !== "f32" ? ops.cast(x, { to: "f32" }) : x;
}
