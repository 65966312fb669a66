/**
 * How ops run kernels of f32 on f16 operands: a window of rows at a time is widened to f32 in workspace that stays in a cache,
 * and results are narrowed.
 *
 *     for window of rows: widen the f16 inputs; run the kernel; narrow the f16 outputs
 */
import type { RowRange } from "../../op.ts";
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

export function hasF16(io: Operands): boolean {
  for (const name in io) if (io[name]?.dtype === "f16") return true;
  return false;
}

/** Calls `run` with operands in f32: once with all rows if none of those with rows is f16, else once for each window of them. */
export function overRows(
  k: WasmContext,
  n: number,
  { inputs, outputs, whole = {}, window = WINDOW }: RowOperands,
  run: (io: Record<string, Tensor | null>, range: RowRange) => void,
): void {
  const rowed = { ...inputs, ...outputs };
  const fixed: Record<string, Tensor | null> = {};
  for (const [name, tensor] of Object.entries(whole)) fixed[name] = tensor && widened(k, tensor);
  if (!Object.values(rowed).some((tensor) => tensor?.dtype === "f16")) {
    run({ ...rowed, ...fixed }, { start: 0, count: n });
    return;
  }
  const f16s = Object.entries(rowed).filter((entry): entry is [string, Tensor] => entry[1]?.dtype === "f16");
  const widest = Math.max(...f16s.map(([, tensor]) => tensor.size / n));
  const maxRows = Math.max(1, Math.min(n, Math.floor(window / widest)));
  const temps = f16s.map(([name, tensor]) => ({
    name,
    tensor,
    temp: k.temp([maxRows, tensor.size / n]),
    isInput: name in inputs,
  }));
  for (let start = 0; start < n; start += maxRows) {
    const range = { start, count: Math.min(maxRows, n - start) };
    const io: Record<string, Tensor | null> = { ...fixed };
    for (const [name, tensor] of Object.entries(rowed)) io[name] = tensor && k.rows(tensor, n, range);
    const converted = temps.map(({ name, tensor, temp, isInput }) => {
      const original = io[name]!;
      const part = k.rows(temp, maxRows, { start: 0, count: range.count });
      const size = (tensor.size / n) * range.count;
      if (isInput) convert(k, "widen", original, part, size);
      io[name] = part;
      return { original, part, size, isInput };
    });
    run(io, range);
    for (const { original, part, size, isInput } of converted) {
      if (!isInput) convert(k, "narrow", part, original, size);
    }
  }
}
