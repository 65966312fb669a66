/**
 * Heads whose width is no multiple of four, such as the 150 of a side network of Qwen2.5-7B: kernels that take vectors get
 * copies with zeros behind each head, which add nothing to any product, and their results are copied back.
 */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { type AttentionExtents, wantsVectors } from "./attention-plan.ts";
import { slice, sliceBackward } from "./layout.ts";

const VECTOR = 4;
const AXIS = 3; // D, of [B,T,H,D]

/** x with zeros behind each head, as workspace. */
function widen(k: KernelContext, x: Tensor, D: number, length: number): Tensor {
  const dx = k.temp([...x.shape.slice(0, AXIS), length], x.dtype);
  sliceBackward.kernel(
    k,
    { dy: x, dx },
    { outer: x.size / D, count: D, inner: 1 },
    { axis: AXIS, start: 0, length },
  );
  return dx;
}

/** The first `count` values of each head of x to y. */
function narrow(k: KernelContext, x: Tensor, y: Tensor, length: number, count: number): void {
  slice.kernel(k, { x, y }, { outer: y.size / count, length, inner: 1 }, { axis: AXIS, start: 0, count });
}

/**
 * Calls `run` with operands whose heads are whole vectors: `heads` and `results` as they are, or copies of them.
 * `heads` are read, `results` written; all are [..,D].
 */
export function inVectors<Heads extends Record<string, Tensor>, Results extends Record<string, Tensor>>(
  k: KernelContext,
  extents: AttentionExtents,
  heads: Heads,
  results: Results,
  run: (operands: Heads & Results, extents: AttentionExtents) => void,
): void {
  const { D } = extents;
  const wide = Math.ceil(D / VECTOR) * VECTOR;
  if (wide === D || !wantsVectors(k, { ...extents, D: wide })) {
    run({ ...heads, ...results }, extents);
    return;
  }
  const widened = Object.entries(heads).map(([name, x]) => [name, widen(k, x, D, wide)] as const);
  const made = Object.entries(results).map(
    ([name, { shape, dtype }]) => [name, k.temp([...shape.slice(0, AXIS), wide], dtype)] as const,
  );
  run(Object.fromEntries([...widened, ...made]) as Heads & Results, { ...extents, D: wide });
  for (const [name, x] of made) narrow(k, x, results[name], wide, D);
  for (const [, x] of [...widened, ...made]) x.dispose();
}
