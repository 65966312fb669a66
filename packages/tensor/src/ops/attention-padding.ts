/**
 * Pads heads to a multiple of 4, such as the 150 of a side network of Qwen2.5-7B: kernels that read vec4s get copies with zeros
 * at the end of each head, which change no dot product, and the results are copied back without the padding.
 */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { type AttentionExtents, readsVectors } from "./attention-kernels.ts";
import { slice, sliceBackward } from "./layout.ts";

const VECTOR = 4;
const AXIS = 3; // D, of [B,T,H,D]

/** x with each head padded from D to `length` with zeros, as workspace. */
function pad(k: KernelContext, x: Tensor, D: number, length: number): Tensor {
  const dx = k.temp([...x.shape.slice(0, AXIS), length], x.dtype);
  sliceBackward.kernel(
    k,
    { dy: x, dx },
    { outer: x.size / D, count: D, inner: 1 },
    { axis: AXIS, start: 0, length },
  );
  return dx;
}

/** Copies the first D values of each head of x to y. */
function unpad(k: KernelContext, x: Tensor, y: Tensor, length: number, D: number): void {
  slice.kernel(k, { x, y }, { outer: y.size / D, length, inner: 1 }, { axis: AXIS, start: 0, count: D });
}

/**
 * Calls `run` with heads of a size that the kernel for these extents takes: the tensors themselves or padded copies. `inputs`
 * are read and `outputs` written; all are [..,D].
 */
export function withPaddedHeads<
  Inputs extends Record<string, Tensor>,
  Outputs extends Record<string, Tensor>,
>(
  k: KernelContext,
  extents: AttentionExtents,
  inputs: Inputs,
  outputs: Outputs,
  run: (operands: Inputs & Outputs, extents: AttentionExtents) => void,
): void {
  const { D } = extents;
  const padded = Math.ceil(D / VECTOR) * VECTOR;
  if (padded === D || !readsVectors(k.profile, { ...extents, D: padded })) {
    run({ ...inputs, ...outputs }, extents);
    return;
  }
  const paddedInputs = Object.entries(inputs).map(([name, x]) => [name, pad(k, x, D, padded)] as const);
  const paddedOutputs = Object.entries(outputs).map(
    ([name, { shape, dtype }]) => [name, k.temp([...shape.slice(0, AXIS), padded], dtype)] as const,
  );
  const operands = Object.fromEntries([...paddedInputs, ...paddedOutputs]) as Inputs & Outputs;
  run(operands, { ...extents, D: padded });
  for (const [name, x] of paddedOutputs) unpad(k, x, outputs[name], padded, D);
  for (const [, x] of [...paddedInputs, ...paddedOutputs]) x.dispose();
}
