/** What comes to the matrices of a block, as second moments: what calibration weighs rounding errors by. */
import { type Ops, repeat, type Tensor } from "@sidenet/tensor";
import type { BlockWeights, ProjectionName } from "../block.ts";
import type { TokenBatch } from "../decoder.ts";
import type { Projection } from "../projection.ts";

/** Projections by the moments that they share. */
export const READERS: readonly (readonly ProjectionName[])[] = [
  ["q"],
  ["k"],
  ["v"],
  ["o"],
  ["gate", "up"],
  ["down"],
];

/**
 * What the first token of a sequence counts for keys and values, as a share of the sequence's length; any other counts 1. Heads that
 * look for nothing look there (attention sinks, Xiao et al. 2023, 2309.17453), so its error is in the output of every token.
 */
const SINK_SHARE = 0.25;

/** Σ xᵀx of each input of a block, f32[in,in], over all rows that went through. */
type Moments = ReadonlyMap<ProjectionName, Tensor>;

/** Square roots of what each token of a row counts for keys and values. */
export function sinkWeights({ segments, length }: TokenBatch): Float32Array {
  const starts = [...Array(length).keys()].filter(
    (t) => t === 0 || (segments && segments[t] !== segments[t - 1]),
  );
  const weights = new Float32Array(length).fill(1);
  for (const [i, start] of starts.entries())
    weights[start] = Math.sqrt(Math.max(1, SINK_SHARE * ((starts[i + 1] ?? length) - start)));
  return weights;
}

/** Adds Σ xᵀx of rows x [.., in] to a total. */
function addMoments(ops: Ops, total: Tensor, x: Tensor): void {
  const columns = x.shape[x.shape.length - 1];
  total.device.scope(() => {
    const rows = ops.reshape(x, { shape: [x.size / columns, columns] });
    ops.accumulate(total, ops.matmulTN(rows, rows));
  });
}

type Attention = Ops["attention"];

/**
 * Moments of what attention makes of the values' input x [B,T,d]: as it is linear in values, a head's output is v_proj of the mean of x
 * that the head takes. Heads share the total. False where x does not divide into values.
 */
export function addAttended(
  ops: Ops,
  total: Tensor,
  x: Tensor,
  ...[q, k, , ...rest]: Parameters<Attention>
): boolean {
  const [batch, length, heads, width] = q.shape;
  const parts = x.shape[2] / width;
  if (!Number.isInteger(parts)) return false;
  for (let head = 0; head < heads; head++) {
    total.device.scope(() => {
      const one = (of: Tensor, start: number) =>
        repeat(ops, ops.slice(of, { axis: 2, start, count: 1 }), 2, parts);
      const values = ops.reshape(x, { shape: [batch, length, parts, width] });
      const group = Math.floor((head * k.shape[2]) / heads);
      const seen = ops.attention(one(q, head), one(k, group), values, ...rest);
      addMoments(ops, total, ops.reshape(seen, { shape: x.shape }));
    });
  }
  return true;
}

/** A block's projections and ops that add to moments whatever comes to them; `sinks` [T,1] weighs what keys read. */
export function observed(
  ops: Ops,
  weights: BlockWeights,
  moments: Moments,
  sinks: Tensor,
): { ops: Ops; weights: BlockWeights } {
  let values: Tensor | null = null;
  const observe =
    (place: ProjectionName, total: Tensor): Projection =>
    (own, x) => {
      if (place === "v") values = x;
      else if (place === "k") total.device.scope(() => addMoments(own, total, ops.mul(x, sinks)));
      else addMoments(own, total, x);
      return weights[place](own, x);
    };
  const seen = [...moments].map(([place, total]) => [place, observe(place, total)]);
  const attention: Attention = (...inputs) => {
    const total = moments.get("v")!;
    if (!addAttended(ops, total, values!, ...inputs))
      total.device.scope(() => addMoments(ops, total, ops.mul(values!, sinks)));
    return ops.attention(...inputs);
  };
  return { ops: { ...ops, attention }, weights: { ...weights, ...Object.fromEntries(seen) } };
}
