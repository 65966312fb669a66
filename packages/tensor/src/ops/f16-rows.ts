/** Converts operands to the f16 that subgroup matrices take. Each row is scaled by a power of two, so that it cannot overflow. */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** A left operand of a matmul in f16; disposing it frees the workspace. */
export interface F16Rows extends Disposable {
  readonly a: Tensor;
  /** The factor of each row, f32[M]: the row times it is the original. null where the operand was f16 already. */
  readonly scales: Tensor | null;
}

const LANES = 128;
const FEW_LANES = 32; // enough for short rows

/** a[M,K] in f16 as workspace, with the scale of each row; a itself if it is f16 already. */
export function toF16Rows(k: KernelContext, a: Tensor, M: number, K: number): F16Rows {
  if (a.dtype === "f16") return { a, scales: null, [Symbol.dispose]() {} };
  const rows = k.temp([M, K], "f16");
  const scales = k.temp([M]);
  run(k, { a, rows, scales }, M, K);
  return {
    a: rows,
    scales,
    [Symbol.dispose]() {
      rows.dispose();
      scales.dispose();
    },
  };
}

/**
 * Vectors [..,D] in f16 as workspace [..,D + 4]: element D of a vector is the exponent of the power of two that multiplies it,
 * with the bias 127 of f32.
 */
export function toF16WithExponents(k: KernelContext, a: Tensor, D: number): Tensor {
  const M = a.size / D;
  const rows = k.temp([...a.shape.slice(0, -1), D + 4], "f16");
  run(k, { a, rows, scales: null }, M, D);
  return rows;
}

function run(
  k: KernelContext,
  { a, rows, scales }: { a: Tensor; rows: Tensor; scales: Tensor | null },
  M: number,
  K: number,
): void {
  for (const range of k.split(M, [a, rows, scales])) {
    k.run("f16-rows/main", {
      bind: {
        a: k.rows(a, M, range),
        rows: k.rows(rows, M, range),
        scales: scales && k.rows(scales, M, range),
      },
      params: { m: range.count, k: K, aAt: 0, aRow: K },
      grid: range.count,
      consts: { LANES: K > 4 * FEW_LANES ? LANES : FEW_LANES, EXPONENTS: Number(scales === null) },
    });
  }
}
