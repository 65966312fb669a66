/**
 * Functions composed of ops, which need no kernel. They take an `Ops`, so a tape records their ops and their gradients follow from
 * those.
 */
import { SidenetError } from "../errors.ts";
import { formatShape } from "../shape.ts";
import type { Tensor } from "../tensor.ts";
import { axisOf, replaceAxis } from "./axis.ts";
import type { Ops } from "./index.ts";

/** Concatenates tensors along an axis. Pairs are joined level by level, so each element is copied log2 n times. */
export function concatAll(ops: Ops, tensors: readonly Tensor[], axis: number): Tensor {
  if (tensors.length === 0) throw new SidenetError("T-SHAPE", "concatAll was given no tensors.");
  let level = tensors;
  while (level.length > 1) {
    level = Array.from({ length: Math.ceil(level.length / 2) }, (_, i) =>
      2 * i + 1 < level.length ? ops.concat(level[2 * i], level[2 * i + 1], { axis }) : level[2 * i],
    );
  }
  const [joined] = level;
  return joined === tensors[0] ? ops.reshape(joined, { shape: joined.shape }) : joined; // a view, never the operand itself
}

/** Slices start[i] .. stop[i] of every axis i. Axes that stay whole cost nothing. */
export function sliceAll(ops: Ops, x: Tensor, start: readonly number[], stop: readonly number[]): Tensor {
  if (start.length !== x.shape.length || stop.length !== x.shape.length) {
    throw new SidenetError(
      "T-ATTR",
      `sliceAll: start ${formatShape(start)} and stop ${formatShape(stop)} want an entry for each axis of ${x}.`,
    );
  }
  let part = x;
  for (const [axis, extent] of x.shape.entries()) {
    if (start[axis] === 0 && stop[axis] === extent) continue;
    part = ops.slice(part, { axis, start: start[axis], count: stop[axis] - start[axis] });
  }
  return part === x ? ops.reshape(x, { shape: x.shape }) : part;
}

/**
 * Log-probabilities of logits: x - log Σ exp(x) over the last axis. Unlike the log of softmax it stays finite where a probability
 * is too small for f32.
 */
export function logSoftmax(ops: Ops, x: Tensor): Tensor {
  const last = x.shape.length - 1;
  const kept = [...x.shape.slice(0, last), 1];
  return x.device.scope(() => {
    // The maximum cancels in the value and in the gradient, so it is computed off the tape.
    const { ops: plain } = x.device;
    const shifted = ops.sub(x, plain.reshape(plain.max(x, { axis: last }), { shape: kept }));
    const logSum = ops.log(ops.sum(ops.exp(shifted), { axis: last }));
    return ops.sub(shifted, ops.reshape(logSum, { shape: kept }));
  });
}

/** Repeats each element `count` times along an axis, like NumPy's repeat: [a, b] gives [a, a, b, b]. */
export function repeat(ops: Ops, x: Tensor, axis: number, count: number): Tensor {
  const at = axisOf(x.shape, axis);
  const spread = [...x.shape.slice(0, at + 1), count, ...x.shape.slice(at + 1)];
  const shape = replaceAxis(x.shape, at, x.shape[at] * count);
  return ops.reshape(ops.broadcast(x, { shape: spread, axis: at + 1 }), { shape });
}

/** The `count` largest elements of the last axis in descending order, and their positions. Gradients flow through the values. */
export function topKValues(ops: Ops, x: Tensor, count: number): { values: Tensor; ids: Tensor } {
  const ids = ops.topK(x, { count });
  return { values: ops.gatherAlong(x, ids), ids };
}
