/**
 * How ops run kernels of f32 on f16 operands: a window of rows at a time is widened to f32 in workspace that stays in a cache,
 * and results are narrowed.
 *
 *     for window of rows: widen the f16 inputs; run the kernel; narrow the f16 outputs
 */
import { type RowRange, rangesOf } from "../../op.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext } from "../context.ts";
import { chunks } from "./work.ts";

/** Elements of an operand that are f32 at a time, by default. */
const WINDOW = 2 ** 17;

type Operands = Readonly<Record<string, Tensor | null>>;

/** Operands of an op over `n` rows: inputs and outputs of n rows each, and those that every window takes whole. */
export interface RowOperands {
  readonly inputs: Operands;
  readonly outputs: Operands;
  readonly whole?: Operands;
  /** How many elements of an operand are f32 at a time; by default as many as stay in a cache. */
  readonly window?: number;
}

/** A tensor in f32: itself, or a copy in workspace. */
export function widened(k: WasmContext, tensor: Tensor): Tensor {
  if (tensor.dtype !== "f16") return tensor;
  const copy = k.temp(tensor.shape);
  convert(k, "widen", tensor, copy, tensor.size);
  return copy;
}

/** Writes f32 results to an f16 tensor. */
export const narrowInto = (k: WasmContext, results: Tensor, to: Tensor): void =>
  convert(k, "narrow", results, to, to.size);

const convert = (k: WasmContext, kernel: "widen" | "narrow", x: Tensor, y: Tensor, n: number): void =>
  k.run(kernel, { x, y, n }, chunks(n));

function hasF16(io: Operands): boolean {
  for (const name in io) if (io[name]?.dtype === "f16") return true;
  return false;
}

/** Calls `run` with operands in f32: once with all rows if none is f16, else once for each window of them. */
export function overRows(
  k: WasmContext,
  n: number,
  { inputs, outputs, whole = {}, window = WINDOW }: RowOperands,
  run: (io: Record<string, Tensor | null>, range: RowRange) => void,
): void {
  const all = { ...inputs, ...outputs, ...whole };
  if (!hasF16(all)) {
    run(all, { start: 0, count: n });
    return;
  }
  const io: Record<string, Tensor | null> = {};
  for (const [name, tensor] of Object.entries(whole)) io[name] = tensor && widened(k, tensor);
  const f16s = Object.values({ ...inputs, ...outputs }).filter((tensor) => tensor?.dtype === "f16");
  const widest = Math.max(1, ...f16s.map((tensor) => tensor!.size / n));
  for (const range of rangesOf(n, f16s.length === 0 ? n : Math.max(1, Math.floor(window / widest)))) {
    k.scope(() => {
      const results: (() => void)[] = [];
      for (const [name, tensor] of Object.entries(inputs))
        io[name] = tensor && widened(k, k.rows(tensor, n, range));
      for (const [name, tensor] of Object.entries(outputs)) {
        const to = tensor && k.rows(tensor, n, range);
        const result = to?.dtype === "f16" ? k.temp(to.shape) : to;
        io[name] = result;
        if (result !== to) results.push(() => narrowInto(k, result!, to!));
      }
      run(io, range);
      for (const narrow of results) narrow();
    });
  }
}
