/** Ops that draw random numbers. */
import type { Source } from "../../ops/random.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmOp } from "../context.ts";
import { overRows } from "./f16-windows.ts";
import { chunks } from "./work.ts";

/** Numbers that a thread draws in a nanosecond. */
const DRAWN_PER_NS = 0.3;

const sourceArgs = ({ seed, stream, offset }: Source) => ({ seed, stream, firstBlock: offset / 4 });

export const uniform: WasmOp = (k, { x }: { x: Tensor }, { N }, attrs: Source) => {
  k.run("uniform", { x, n: N, ...sourceArgs(attrs) }, chunks(N, DRAWN_PER_NS));
  return true;
};

export const dropout: WasmOp = (
  k,
  { x, y }: { x: Tensor; y: Tensor },
  { N },
  { rate, ...source }: Source & { rate: number },
) => {
  const limit = Math.fround(rate); // as every device has it
  // A window begins at a multiple of a block's four numbers.
  overRows(k, N, { inputs: { x }, outputs: { y } }, (io, { start, count: n }) => {
    const { firstBlock, ...stream } = sourceArgs(source);
    const numbers = { ...stream, firstBlock: firstBlock + start / 4, rate: limit, factor: 1 / (1 - limit) };
    k.run("dropout", { ...io, n, ...numbers }, chunks(n, DRAWN_PER_NS));
  });
  return true;
};
