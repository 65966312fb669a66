/** Ops that run by elementwise kernels, where all operands are f32 and none broadcasts. */
import { sameShape } from "../../shape.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import type { KernelName } from "./index.ts";
import { chunks, EXP_PER_NS, isF32, SIMPLE_PER_NS } from "./work.ts";

const unary =
  (kernel: KernelName, perNs = SIMPLE_PER_NS): WasmOp =>
  (k, io: { x: Tensor; y: Tensor }) => {
    if (!isF32(io)) return false;
    k.run(kernel, { ...io, n: io.x.size }, chunks(io.x.size, perNs));
    return true;
  };

export const neg = unary("neg");
export const abs = unary("abs");
export const relu = unary("relu");
export const sqrt = unary("sqrt");
export const exp = unary("exp", EXP_PER_NS);
export const log = unary("log", EXP_PER_NS);
export const sigmoid = unary("sigmoid", EXP_PER_NS);
export const silu = unary("silu", EXP_PER_NS);

const binary =
  (kernel: KernelName): WasmOp =>
  (k, io: { a: Tensor; b: Tensor; y: Tensor }) => {
    if (!isF32(io) || !sameShape(io.a.shape, io.b.shape)) return false;
    k.run(kernel, { ...io, n: io.y.size }, chunks(io.y.size));
    return true;
  };

export const add = binary("add");
export const sub = binary("sub");
export const mul = binary("mul");
export const div = binary("div");
export const minimum = binary("minimum");
export const maximum = binary("maximum");

export const siluMul: WasmOp = (k, io: { gate: Tensor; up: Tensor; y: Tensor }) => {
  if (!isF32(io)) return false;
  const { gate: a, up: b, y } = io;
  k.run("siluMul", { a, b, y, n: y.size }, chunks(y.size, EXP_PER_NS));
  return true;
};

export const siluMulBackward: WasmOp = (k, io: Record<"dy" | "gate" | "up" | "dgate" | "dup", Tensor>) => {
  if (!isF32(io)) return false;
  k.run("siluMulBackward", { ...io, n: io.dy.size }, chunks(io.dy.size, EXP_PER_NS));
  return true;
};

export const accumulate: WasmOp = (k, io: { total: Tensor; x: Tensor }) => {
  if (!isF32(io)) return false;
  const { total, x } = io;
  k.run("add", { a: total, b: x, y: total, n: x.size }, chunks(x.size));
  return true;
};

export const scale: WasmOp = (k, io: { x: Tensor; y: Tensor }, _, { factor }: { factor: number }) => {
  if (!isF32(io)) return false;
  k.run("scale", { ...io, n: io.x.size, factor, by: 0 }, chunks(io.x.size));
  return true;
};

export const scaleBy: WasmOp = (k, io: { x: Tensor; s: Tensor; y: Tensor }) => {
  if (!isF32(io)) return false;
  const { x, s, y } = io;
  k.run("scale", { x, y, n: x.size, factor: 1, by: s }, chunks(x.size));
  return true;
};

export const fill: WasmOp = (k, io: { x: Tensor }, _, { value }: { value: number }) => {
  if (!isF32(io)) return false;
  k.run("fill", { ...io, n: io.x.size, value }, chunks(io.x.size));
  return true;
};

export const cast: WasmOp = (k, { x, y }: { x: Tensor; y: Tensor }) => {
  const kernel = x.dtype === "f16" ? "widen" : "narrow";
  if (x.dtype === y.dtype) return false;
  k.run(kernel, { x, y, n: x.size }, chunks(x.size));
  return true;
};
