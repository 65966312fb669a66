import type { MatmulForm } from "../../ops/matmul-blocks.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { type ProductExtents, type ProductOperands, runProduct, takesProduct } from "./product-plan.ts";

const product =
  (form: MatmulForm): WasmOp =>
  (k, { a, b, y }: ProductOperands, { P, M, K, N }) => {
    const extents: ProductExtents = { P, M, K, N };
    if (!takesProduct({ a, b, y }, extents)) return false;
    runProduct(k, form, { a, b, y }, extents);
    return true;
  };

export const matmul = product("nn");
export const matmulNT = product("nt");
export const matmulTN = product("tn");

interface LinearIo {
  readonly x: Tensor;
  readonly w: Tensor;
  readonly bias: Tensor | null;
  readonly y: Tensor;
}

export const linear: WasmOp = (k, { x, w, bias, y }: LinearIo, { N, I, O }) => {
  const operands = { a: x, b: w, y, bias };
  const extents = { P: 1, M: N, K: I, N: O };
  if (!takesProduct(operands, extents)) return false;
  runProduct(k, "nt", operands, extents);
  return true;
};
