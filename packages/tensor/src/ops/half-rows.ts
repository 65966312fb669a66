/** Operands in halves, as subgroup matrices take them: each row divided by a power of two, so that nothing overflows. */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";

/** A left operand of a product in f16. */
export interface Halves {
  readonly a: Tensor;
  /** What its rows are to be multiplied by, f32[M]; null where it was in f16 anyway. */
  readonly scales: Tensor | null;
}

const LANES = 128;
const FEW_LANES = 32; // for rows of so few vectors

/** a[M,K] in f16, as workspace; itself when it is. */
export function halvesOf(k: KernelContext, a: Tensor, M: number, K: number): Halves {
  if (a.dtype === "f16") return { a, scales: null };
  const half = k.temp([M, K], "f16");
  const scales = k.temp([M]);
  run(k, { a, half, scales }, M, K);
  return { a: half, scales };
}

/** Vectors [.., D] in f16 as [M, D + 4], workspace: after each the exponent of its power of two, biased as in f32. */
export function halvesWithPowers(k: KernelContext, a: Tensor, D: number): Tensor {
  const M = a.size / D;
  const half = k.temp([...a.shape.slice(0, -1), D + 4], "f16");
  run(k, { a, half, scales: null }, M, D);
  return half;
}

function run(
  k: KernelContext,
  { a, half, scales }: { a: Tensor; half: Tensor; scales: Tensor | null },
  M: number,
  K: number,
): void {
  for (const rows of k.split(M, [a, half, scales])) {
    const bind = {
      a: k.rows(a, M, rows),
      half: k.rows(half, M, rows),
      scales: scales && k.rows(scales, M, rows),
    };
    k.run("half-rows/main", {
      bind,
      params: { m: rows.count, k: K, aAt: 0, aRow: K },
      grid: rows.count,
      consts: { LANES: K > 4 * FEW_LANES ? LANES : FEW_LANES, TAIL: Number(scales === null) },
    });
  }
}
