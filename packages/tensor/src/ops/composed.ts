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
