import type { MatmulForm } from "../../ops/matmul-blocks.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { overRows } from "./f16-windows.ts";
import { F16_WINDOW, runMatmul } from "./matmul-plan.ts";

/** y = a·b. Of operands in f16, a and y go through in windows as f32; the kernels that pack b decode it themselves. */
const matmulOf =
  (form: MatmulForm): WasmOp =>
  (k, { a, b, y }: Record<"a" | "b" | "y", Tensor>, { P, M, K, N }) => {
    const byRow = P === 1 && form !== "tn"; // rows of a are rows of y
    const operands = { inputs: { a }, outputs: { y }, window: F16_WINDOW };
    overRows(k, byRow ? M : P, operands, (io, range) => {
      const { count } = range;
      const extents = byRow ? { P, M: count, K, N } : { P: count, M, K, N };
      runMatmul(k, form, { a: io.a!, b: byRow ? b : k.rows(b, P, range), y: io.y! }, extents);
    });
    return true;
  };

export const matmul = matmulOf("nn");
export const matmulNT = matmulOf("nt");
export const matmulTN = matmulOf("tn");

interface LinearIo {
  readonly x: Tensor;
  readonly w: Tensor;
  readonly bias: Tensor | null;
  readonly y: Tensor;
}

export const linear: WasmOp = (k, { x, w, bias, y }: LinearIo, { N, I, O }) => {
  overRows(k, N, { inputs: { x }, outputs: { y }, whole: { bias }, window: F16_WINDOW }, (io, { count }) =>
    runMatmul(k, "nt", { a: io.x!, b: w, y: io.y!, bias: io.bias }, { P: 1, M: count, K: I, N: O }),
  );
  return true;
};
