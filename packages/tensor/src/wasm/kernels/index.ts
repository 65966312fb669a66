/** All kernels, and all ops that run by kernels; other ops run by their reference. X.ts has kernels, X-ops.ts the ops that call them. */
import type { Execution } from "../../op-call.ts";
import type { OpName } from "../../ops/index.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import * as attention from "./attention.ts";
import * as attentionBackward from "./attention-backward.ts";
import * as attentionFew from "./attention-few.ts";
import * as attentionOps from "./attention-ops.ts";
import * as attentionPack from "./attention-pack.ts";
import * as binary from "./binary.ts";
import * as elementwise from "./elementwise.ts";
import * as elementwiseOps from "./elementwise-ops.ts";
import type { Kernel } from "./kernel.ts";
import * as layoutOps from "./layout-ops.ts";
import * as loss from "./loss.ts";
import * as lossOps from "./loss-ops.ts";
import * as matmul from "./matmul.ts";
import * as matmulFew from "./matmul-few.ts";
import * as matmulOps from "./matmul-ops.ts";
import * as nf4 from "./nf4.ts";
import * as nf4Ops from "./nf4-ops.ts";
import * as norms from "./norms.ts";
import * as optimizer from "./optimizer.ts";
import * as optimizerOps from "./optimizer-ops.ts";
import * as permute from "./permute.ts";
import * as random from "./random.ts";
import * as randomOps from "./random-ops.ts";
import * as reduce from "./reduce.ts";
import * as reduceOps from "./reduce-ops.ts";
import * as rowOps from "./row-ops.ts";
import * as rows from "./rows.ts";
import * as sample from "./sample.ts";
import * as sampleOps from "./sample-ops.ts";

const table = {
  ...attention,
  ...attentionBackward,
  ...attentionFew,
  ...attentionPack,
  ...binary,
  ...elementwise,
  ...loss,
  ...matmul,
  ...matmulFew,
  ...nf4,
  ...norms,
  ...optimizer,
  ...permute,
  ...random,
  ...reduce,
  ...rows,
  ...sample,
} satisfies Record<string, Kernel>;

export type KernelName = keyof typeof table;
export const kernels: Readonly<Record<KernelName, Kernel>> = table;
/** Names of kernels, in the order of the module's function table. */
export const kernelNames = Object.keys(table) as KernelName[];

const ops = {
  ...attentionOps,
  ...elementwiseOps,
  ...layoutOps,
  ...lossOps,
  ...matmulOps,
  ...nf4Ops,
  ...optimizerOps,
  ...randomOps,
  ...reduceOps,
  ...rowOps,
  ...sampleOps,
} satisfies {
  readonly [K in OpName]?: WasmOp;
};
const wasmOps: Readonly<Record<string, WasmOp | undefined>> = ops;

/** Runs an op by kernels. Returns false where the reference is to run: without kernels for these operands, or if any is empty. */
export function runByKernels(context: WasmContext, { row, io, dims, attrs }: Execution): boolean {
  const op = wasmOps[row.name];
  if (op === undefined) return false;
  for (const name in io) if (io[name]?.size === 0) return false;
  context.op = row.name;
  try {
    return op(context, io, dims, attrs);
  } finally {
    context.release();
  }
}
