/** Optimizer steps. Parameters and moments are f32; a gradient in f16 is widened first. */
import { adamwParams } from "../../ops/optimizer.ts";
import { STATE_BLOCK } from "../../ops/optimizer-variants.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { widened } from "./f16-windows.ts";
import { chunks } from "./work.ts";

/** The numbers that both kernels of AdamW take. */
function numbers(attrs: Parameters<typeof adamwParams>[0]) {
  const { correction1, correction2, lr, ...others } = adamwParams(attrs);
  return { ...others, stepSize: lr / correction1, correction2: 1 / correction2 };
}

export const adamw: WasmOp = (k, io: Record<string, Tensor>, { N }, attrs) => {
  k.run("adamw", { ...io, g: widened(k, io.g), n: N, ...numbers(attrs) }, chunks(N));
  return true;
};

/** Blocks of a task, which finds the codes of buckets first, and elements that a thread processes in a nanosecond. */
const TASK_BLOCKS = 64;
const ENCODED_PER_NS = 0.16;

export const adamw8: WasmOp = (k, io: Record<string, Tensor>, { N, B }, attrs) => {
  const split = { tasks: Math.ceil(B / TASK_BLOCKS), work: (B * STATE_BLOCK) / ENCODED_PER_NS };
  k.run(
    "adamw8",
    { ...io, g: widened(k, io.g), n: N, blocks: B, rows: TASK_BLOCKS, ...numbers(attrs) },
    split,
  );
  return true;
};

export const sgd: WasmOp = (k, io: Record<string, Tensor>, { N }, attrs) => {
  k.run("sgd", { ...io, g: widened(k, io.g), n: N, ...attrs }, chunks(N));
  return true;
};
