import type { MatmulForm } from "../../ops/matmul-blocks.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { overRows } from "./f16-windows.ts";
import { F16_WINDOW, runMatmul, runMatmulRows } from "./matmul-plan.ts";

/** y = a·b. Of operands in f16, a and y go through in windows as f32; the kernels that pack b decode it themselves. */
const matmulOf =
  (form: MatmulForm): WasmOp =>
  (k, { a, b, y }: Record<"a" | "b" | "y", Tensor>, { P, M, K, N }) => {
    if (P === 1 && form !== "tn") return runMatmulRows(k, form, { a, b, y }, { M, K, N });
    overRows(k, P, { inputs: { a }, outputs: { y }, window: F16_WINDOW }, (io, range) =>
      runMatmul(k, form, { a: io.a!, b: k.rows(b, P, range), y: io.y! }, { P: range.count, M, K, N }),
    );
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

export const linear: WasmOp = (k, { x, w, bias, y }: LinearIo, { N, I, O }) =>
  runMatmulRows(k, "nt", { a: x, b: w, y, bias }, { M: N, K: I, N: O });
