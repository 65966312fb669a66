/** Ops that run by elementwise kernels; operands in f16 go through in windows (f16-windows.ts). */
import { type BroadcastAxis, joinAxes } from "../../broadcasting.ts";
import { LARGEST_F32 } from "../../dtype.ts";
import type { GeluForm } from "../../ops/activations.ts";
import { sameShape } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import type { Tasks, WasmContext, WasmOp } from "../context.ts";
import { overRows, type RowOperands } from "./f16-windows.ts";
import type { KernelName } from "./index.ts";
import { OUTER_AXES } from "./tasks.ts";
import { chunks, EXP_PER_NS, rowTasks, SIMPLE_PER_NS } from "./work.ts";

/** Runs an elementwise kernel over operands of one shape. */
function runElements(
  k: WasmContext,
  kernel: KernelName,
  operands: RowOperands,
  { perNs = SIMPLE_PER_NS, ...args }: Readonly<Record<string, number | boolean>> & { perNs?: number } = {},
): true {
  const n = Object.values(operands.outputs)[0]!.size;
  overRows(k, n, operands, (io, { count }) =>
    k.run(kernel, { ...args, ...io, n: count }, chunks(count, perNs)),
  );
  return true;
}

const unary =
  (kernel: KernelName, perNs = SIMPLE_PER_NS): WasmOp =>
  (k, { x, y }: { x: Tensor; y: Tensor }) =>
    runElements(k, kernel, { inputs: { x }, outputs: { y } }, { perNs });

export const neg = unary("neg");
export const abs = unary("abs");
export const sign = unary("sign");
export const relu = unary("relu");
export const sqrt = unary("sqrt");
export const exp = unary("exp", EXP_PER_NS);
export const log = unary("log", EXP_PER_NS);
export const sigmoid = unary("sigmoid", EXP_PER_NS);
export const silu = unary("silu", EXP_PER_NS);
export const tanh = unary("tanh", EXP_PER_NS);

export const gelu: WasmOp = (k, { x, y }: Record<"x" | "y", Tensor>, _, { form }: { form: GeluForm }) =>
  runElements(
    k,
    form === "erf" ? "geluErf" : "geluTanh",
    { inputs: { x }, outputs: { y } },
    { perNs: EXP_PER_NS },
  );

const backward =
  <A>(kernelOf: (attrs: A) => KernelName): WasmOp =>
  (k, { dy: a, x: b, dx: y }: Record<"dy" | "x" | "dx", Tensor>, _, attrs: A) =>
    runElements(k, kernelOf(attrs), { inputs: { a, b }, outputs: { y } }, { perNs: EXP_PER_NS });

export const sigmoidBackward = backward(() => "sigmoidBackward");
export const siluBackward = backward(() => "siluBackward");
export const tanhBackward = backward(() => "tanhBackward");
export const geluBackward = backward(({ form }: { form: GeluForm }) =>
  form === "erf" ? "geluBackwardErf" : "geluBackwardTanh",
);

export const clamp: WasmOp = (
  k,
  { x, y }: Record<"x" | "y", Tensor>,
  _,
  { min, max }: { min: number | null; max: number | null },
) =>
  runElements(
    k,
    "clamp",
    { inputs: { x }, outputs: { y } },
    { min: min ?? -LARGEST_F32, max: max ?? LARGEST_F32 },
  );

export const pow: WasmOp = (
  k,
  { x, y }: Record<"x" | "y", Tensor>,
  _,
  { exponent }: { exponent: number },
) => {
  const operands = { inputs: { x }, outputs: { y } };
  if (!Number.isInteger(exponent)) {
    return runElements(k, "powFraction", operands, { exponent, perNs: EXP_PER_NS });
  }
  const times = Math.abs(exponent);
  return times < 2 ** 31 && runElements(k, "powWhole", operands, { times, inverted: exponent < 0 });
};

/** Strides in bytes of one operand along the axes, the last one last: 0 where it repeats. */
function stridesOf(axes: readonly BroadcastAxis[], operand: 0 | 1): number[] {
  const strides: number[] = [];
  let stride = 4;
  for (const { extent, has } of axes.toReversed()) {
    strides.unshift(has[operand] ? stride : 0);
    if (has[operand]) stride *= extent;
  }
  return strides;
}

/** Arguments and tasks of a kernel whose operands broadcast; `axes` are those of y, joined. */
function broadcastArgs(axes: readonly BroadcastAxis[]): {
  args: Record<string, number | boolean>;
  split: Tasks;
} {
  const outer = axes.slice(0, -1);
  const { extent: c, has } = axes[axes.length - 1];
  const [aStrides, bStrides] = ([0, 1] as const).map((operand) => stridesOf(axes, operand).slice(0, -1));
  const args: Record<string, number | boolean> = { c, aRepeats: !has[0], bRepeats: !has[1] };
  for (let i = 0; i < OUTER_AXES; i++) {
    args[`extent${i}`] = outer.at(-1 - i)?.extent ?? 1;
    args[`a${i}`] = aStrides.at(-1 - i) ?? 0;
    args[`b${i}`] = bStrides.at(-1 - i) ?? 0;
  }
  const n = outer.reduce((product, { extent }) => product * extent, 1);
  const { rows, split } = rowTasks(n, c);
  return { args: { ...args, n, rows }, split };
}

type BinaryKernel = "add" | "sub" | "mul" | "div" | "minimum" | "maximum" | "equal" | "less" | "lessEqual";

/** y = f(a, b), where operands broadcast. They go in windows of the outermost axis, which an operand has or repeats along. */
function runBinary(k: WasmContext, kernel: BinaryKernel, a: Tensor, b: Tensor, y: Tensor): boolean {
  if (sameShape(a.shape, b.shape)) return runElements(k, kernel, { inputs: { a, b }, outputs: { y } });
  const axes = joinAxes(y.shape, [a.shape, b.shape]);
  if (axes.length - 1 > OUTER_AXES) return false;
  const [first = { extent: 1, has: [true, true] }, ...others] = axes;
  const select = (has: boolean) => ({
    ...(first.has[0] === has && { a }),
    ...(first.has[1] === has && { b }),
  });
  const operands = { inputs: select(true), outputs: { y }, whole: select(false) };
  overRows(k, first.extent, operands, (io, { count }) => {
    const { args, split } = broadcastArgs([{ ...first, extent: count }, ...others]);
    k.run(`${kernel}Broadcast`, { ...args, ...io }, split);
  });
  return true;
}

const binary =
  (kernel: BinaryKernel): WasmOp =>
  (k, { a, b, y }: Record<"a" | "b" | "y", Tensor>) =>
    runBinary(k, kernel, a, b, y);

export const add = binary("add");
export const sub = binary("sub");
export const mul = binary("mul");
export const div = binary("div");
export const minimum = binary("minimum");
export const maximum = binary("maximum");

const comparison =
  (kernel: BinaryKernel): WasmOp =>
  (k, { a, b, m }: Record<"a" | "b" | "m", Tensor>) =>
    runBinary(k, kernel, a, b, m);

export const equal = comparison("equal");
export const less = comparison("less");
export const lessEqual = comparison("lessEqual");

export const where: WasmOp = (
  k,
  { mask, a, b, y }: { mask: Tensor; a: Tensor | null; b: Tensor | null; y: Tensor },
) => {
  const isShaped = [mask, a, b].every((operand) => operand === null || sameShape(operand.shape, y.shape));
  return isShaped && runElements(k, "where", { inputs: { mask, a, b }, outputs: { y } });
};

export const siluMul: WasmOp = (k, { gate: a, up: b, y }: Record<"gate" | "up" | "y", Tensor>) =>
  runElements(k, "siluMul", { inputs: { a, b }, outputs: { y } }, { perNs: EXP_PER_NS });

export const siluMulBackward: WasmOp = (
  k,
  { dy, gate, up, dgate, dup }: Record<"dy" | "gate" | "up" | "dgate" | "dup", Tensor>,
) =>
  runElements(
    k,
    "siluMulBackward",
    { inputs: { dy, gate, up }, outputs: { dgate, dup } },
    { perNs: EXP_PER_NS },
  );

export const accumulate: WasmOp = (k, { total, x }: { total: Tensor; x: Tensor }) =>
  runElements(k, "add", { inputs: { a: total, b: x }, outputs: { y: total } });

export const scale: WasmOp = (k, { x, y }: Record<"x" | "y", Tensor>, _, { factor }: { factor: number }) =>
  runElements(k, "scale", { inputs: { x }, outputs: { y } }, { factor, by: 0 });

export const scaleBy: WasmOp = (k, { x, s: by, y }: Record<"x" | "s" | "y", Tensor>) =>
  runElements(k, "scale", { inputs: { x }, outputs: { y }, whole: { by } }, { factor: 1 });

export const fill: WasmOp = (k, { x }: { x: Tensor }, _, { value }: { value: number }) =>
  runElements(k, "fill", { inputs: {}, outputs: { x } }, { value });
