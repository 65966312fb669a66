/** Ops over weights in NF4. */
import type { Nf4Blocks, Nf4Operands } from "../../ops/nf4.ts";
import type { Nf4Part } from "../../ops/nf4-linear.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { rightOf, runMatmulRows, weightOf } from "./matmul-plan.ts";
import { chunks, rowTasks } from "./work.ts";

/** Elements that a thread decodes, or quantizes, in a nanosecond. */
const DECODED_PER_NS = 3;
const QUANTIZED_PER_NS = 0.3;
/** Elements of a task that quantizes, roughly. */
const QUANTIZED_SIZE = 8192;

export const nf4Dequantize: WasmOp = (k, { w, ...weight }: Nf4Operands<Tensor> & { w: Tensor }, _, attrs) => {
  k.run("decodeNf4", { ...weightOf(weight, attrs), w, n: w.size }, chunks(w.size, DECODED_PER_NS));
  return true;
};

export const nf4Embedding: WasmOp = (
  k,
  { ids, y, ...weight }: Nf4Operands<Tensor> & Record<"ids" | "y", Tensor>,
  { N, V, C },
  attrs,
) => {
  const { rows, split } = rowTasks(N, C, DECODED_PER_NS);
  k.run("embeddingNf4", { ...weightOf(weight, attrs), ids, y, n: N, v: V, width: C, rows }, split);
  return true;
};

type LinearIo = Nf4Operands<Tensor> & {
  readonly x: Tensor;
  readonly bias: Tensor | null;
  readonly y: Tensor;
};

export const nf4Linear: WasmOp = (
  k,
  { x, bias, y, ...weight }: LinearIo,
  { N, I, O },
  attrs: Nf4Blocks & Nf4Part,
) => runMatmulRows(k, "nt", { a: x, b: rightOf(weight, I, attrs, attrs), y, bias }, { M: N, K: I, N: O });

export const nf4LinearBackwardX: WasmOp = (
  k,
  { dy, dx, ...weight }: Nf4Operands<Tensor> & { dy: Tensor; dx: Tensor },
  { N, I, O },
  attrs: Nf4Blocks & Nf4Part,
) => runMatmulRows(k, "nn", { a: dy, b: rightOf(weight, I, attrs, attrs), y: dx }, { M: N, K: O, N: I });

type QuantizeIo = Readonly<Record<"w" | "table" | "codes" | "absmax", Tensor>>;

function runQuantize(k: WasmContext, io: QuantizeIo, { block, at }: { block: number; at: number }): void {
  const { w } = io;
  const blocks = Math.ceil(w.size / block);
  const rows = Math.max(1, Math.floor(QUANTIZED_SIZE / block));
  const args = { ...io, n: w.size, blocks, blockShift: Math.log2(block), at, rows };
  const split = { tasks: Math.ceil(blocks / rows), work: w.size / QUANTIZED_PER_NS };
  k.run(w.dtype === "f16" ? "quantizeNf4F16" : "quantizeNf4F32", args, split);
}

export const nf4Quantize: WasmOp = (k, io: QuantizeIo, _, { block }: { block: number }) => {
  runQuantize(k, io, { block, at: 0 });
  return true;
};

export const nf4QuantizePart: WasmOp = (k, io: QuantizeIo, _, attrs: { block: number; at: number }) => {
  runQuantize(k, io, attrs);
  return true;
};
