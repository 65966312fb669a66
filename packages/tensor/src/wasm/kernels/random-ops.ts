/** Ops on random numbers. */
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { chunks, isF32 } from "./work.ts";

/** Numbers a thread draws in a nanosecond. */
const DRAWN_PER_NS = 0.3;

interface Source {
  readonly seed: number;
  readonly stream: number;
  readonly offset: number;
}

const sourceArgs = ({ seed, stream, offset }: Source) => ({ seed, stream, firstBlock: offset / 4 });

export const uniform: WasmOp = (k, { x }: { x: Tensor }, { N }, attrs: Source) => {
  k.run("uniform", { x, n: N, ...sourceArgs(attrs) }, chunks(N, DRAWN_PER_NS));
  return true;
};

export const dropout: WasmOp = (
  k,
  io: { x: Tensor; y: Tensor },
  { N },
  { rate, ...source }: Source & { rate: number },
) => {
  if (!isF32(io)) return false;
  const limit = Math.fround(rate); // as every device has it
  const args = { ...io, n: N, ...sourceArgs(source), rate: limit, factor: 1 / (1 - limit) };
  k.run("dropout", args, chunks(N, DRAWN_PER_NS));
  return true;
};
