/** Second moments of the inputs of a block's projections, by which calibration weighs rounding errors. */
import { type Ops, repeat, type Tensor } from "@sidenet/tensor";
import type { Attention, BlockWeights, ProjectionName } from "../model/block.ts";
import type { TokenBatch } from "../model/decoder.ts";
import type { Projection } from "../model/projection.ts";

/** Projections, grouped by the inputs that they share. */
export const READERS: readonly (readonly ProjectionName[])[] = [
  ["q"],
  ["k"],
  ["v"],
  ["o"],
  ["gate", "up"],
  ["down"],
];

/**
 * The weight of a sequence's first token in the moments of keys, as a share of the sequence's length; all others count 1. Heads
 * attend to it when they need nothing else (an attention sink, Xiao et al. 2023, 2309.17453), so its error is in the output
 * of every token.
 */
const SINK_SHARE = 0.25;

/** Σ xᵀx of the input x of each projection, f32[in,in], over all rows. */
type Moments = ReadonlyMap<ProjectionName, Tensor>;

/** Square roots of the weight of each token of a row in the moments of keys. */
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

/**
 * Adds the moments that matter for v_proj. Attention is linear in the values, so a head's output is v_proj applied to the
 * head's weighted mean of x [B,T,d], the input of v_proj; these means are summed over heads. Returns false where d is not a
 * multiple of the head size.
 */
export function addAttended(
  ops: Ops,
  total: Tensor,
  x: Tensor,
  ...[q, k, , ...rest]: Parameters<Ops["attention"]>
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
      const means = ops.attention(one(q, head), one(k, group), values, ...rest);
      addMoments(ops, total, ops.reshape(means, { shape: x.shape }));
    });
  }
  return true;
}

/** A block's weights that also add the moments of their inputs to `moments`; `sinks` [T,1] weighs tokens for keys. */
export function observing(weights: BlockWeights, moments: Moments, sinks: Tensor): BlockWeights {
  let values: Tensor | null = null;
  const observe =
    (place: ProjectionName, total: Tensor): Projection =>
    (ops, x) => {
      if (place === "v")
        values = x.device.retain(x); // until attention: the block frees it first
      else if (place === "k") total.device.scope(() => addMoments(ops, total, ops.mul(x, sinks)));
      else addMoments(ops, total, x);
      return weights[place](ops, x);
    };
  const projections = [...moments].map(([place, total]) => [place, observe(place, total)]);
  const attention: Attention = (ops, ...inputs) => {
    const total = moments.get("v")!;
    using x = values!;
    if (!addAttended(ops, total, x, ...inputs))
      total.device.scope(() => addMoments(ops, total, ops.mul(x, sinks)));
    return weights.attention(ops, ...inputs);
  };
  return { ...weights, ...Object.fromEntries(projections), attention };
}
