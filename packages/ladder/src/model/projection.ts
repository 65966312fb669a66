import type { Ops, Tensor } from "@sidenet/tensor";

/** A linear layer, x [..,in] → [..,out], whatever its weight is: floats or NF4, with LoRA or without. */
export type Projection = (ops: Ops, x: Tensor) => Tensor;
