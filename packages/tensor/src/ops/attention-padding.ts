/**
 * Pads heads to a multiple of 4, such as the 150 of a side network of Qwen2.5-7B: kernels that read vec4s get copies with zeros
 * at the end of each head, which change no dot product, and the results are copied back without the padding.
 */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import { type AttentionExtents, readsVectors } from "./attention-kernels.ts";
import { copyRows } from "./copy-rows.ts";

const VECTOR = 4;

/** x with each head padded from D to `length` with zeros, as workspace. */
function pad(k: KernelContext, x: Tensor, D: number, length: number): Tensor {
  const padded = k.temp([...x.shape.slice(0, -1), length], x.dtype);
  copyRows(k, x, padded, { rows: x.size / D, size: D }, "pad");
  return padded;
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
    ([name, { shape, dtype }]) => [name, k.temp([...shape.slice(0, -1), padded], dtype)] as const,
  );
  const operands = Object.fromEntries([...paddedInputs, ...paddedOutputs]) as Inputs & Outputs;
  run(operands, { ...extents, D: padded });
  for (const [name, x] of paddedOutputs) copyRows(k, x, outputs[name], { rows: x.size / padded, size: D });
  for (const [, x] of [...paddedInputs, ...paddedOutputs]) x.dispose();
}
