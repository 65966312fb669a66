import type { Ops, Tensor } from "@sidenet/tensor";

/** A linear layer as a block sees it: what its weight is (float, NF4, with LoRA) is the layer's own affair. */
export type Projection = (ops: Ops, x: Tensor) => Tensor;
