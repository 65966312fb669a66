/** Cross-entropy from logits, or from the head's input in chunks of tokens whose logits fit the workspace. */
import type { LossAttrs } from "../../ops/cross-entropy.ts";
import { type CHUNKS, tokenChunks } from "../../ops/lm-head.ts";
import type { Nf4Blocks, Nf4Operands } from "../../ops/nf4.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { narrowInto, overRows, widened } from "./f16-windows.ts";
import { type Nf4Right, rightOf, runMatmul } from "./matmul-plan.ts";
import { alone, EXP_PER_NS, rowTasks } from "./work.ts";

interface Rows {
  readonly logits: Tensor;
  readonly targets: Tensor;
  readonly max: Tensor;
  readonly logSum: Tensor;
}

/** n rows of v logits, the first of which is row `firstRow` of the targets. */
interface Extents {
  readonly n: number;
  readonly v: number;
  readonly firstRow: number;
}

function runRowLosses(k: WasmContext, io: Rows & { nll: Tensor }, extents: Extents, attrs: LossAttrs): void {
  const { rows, split } = rowTasks(extents.n, extents.v, EXP_PER_NS);
  const { ignoreIndex, labelSmoothing: smoothing } = attrs;
  k.run("rowLosses", { ...io, ...extents, ignoreIndex, smoothing, rows }, split);
}

function runGradients(
  k: WasmContext,
  io: Rows & { dlogits: Tensor; dloss: Tensor | null; scored: Tensor },
  extents: Extents,
  attrs: LossAttrs,
): void {
  const { rows, split } = rowTasks(extents.n, extents.v, EXP_PER_NS);
  const { ignoreIndex, labelSmoothing: smoothing } = attrs;
  k.run("logitGradients", { ...io, ...extents, ignoreIndex, smoothing, rows }, split);
}

function countScored(k: WasmContext, targets: Tensor, { ignoreIndex }: LossAttrs): Tensor {
  const scored = k.temp([1]);
  k.run("countScored", { targets, n: targets.size, ignoreIndex, scored }, alone(targets.size));
  return scored;
}

export const crossEntropy: WasmOp = (
  k,
  io: Omit<Rows, "max" | "logSum"> & { loss: Tensor; max: Tensor | null; logSum: Tensor | null },
  { N, V },
  attrs: LossAttrs,
) => {
  const { logits, targets, loss } = io;
  const nll = k.temp([N]);
  const rows = { targets, max: io.max ?? k.temp([N]), logSum: io.logSum ?? k.temp([N]), nll };
  overRows(k, N, { inputs: { logits }, outputs: {} }, (window, { start: firstRow, count: n }) =>
    runRowLosses(k, { ...rows, logits: window.logits! }, { n, v: V, firstRow }, attrs),
  );
  const scored = countScored(k, targets, attrs);
  k.run("meanLoss", { nll, n: N, scored, loss }, alone(N));
  return true;
};

export const crossEntropyBackward: WasmOp = (
  k,
  io: Rows & { dloss: Tensor; dlogits: Tensor },
  { N, V },
  attrs: LossAttrs,
) => {
  const { logits, dlogits, ...shared } = { ...io, scored: countScored(k, io.targets, attrs) };
  overRows(k, N, { inputs: { logits }, outputs: { dlogits } }, (window, { start: firstRow, count: n }) => {
    const rows = { ...shared, logits: window.logits!, dlogits: window.dlogits! };
    runGradients(k, rows, { n, v: V, firstRow }, attrs);
  });
  return true;
};

type HeadAttrs = LossAttrs & typeof CHUNKS;

interface HeadIo {
  readonly h: Tensor;
  readonly w: Tensor;
  readonly targets: Tensor;
}

/** A head w [V,C] in any storage, its input h and the targets. */
interface Head {
  readonly h: Tensor;
  readonly w: Tensor | Nf4Right;
  readonly V: number;
  readonly targets: Tensor;
}

/** For each chunk of tokens computes the logits, in one workspace, and their losses, and calls `each`. Returns the losses of all rows. */
function forChunks(
  k: WasmContext,
  { h, w, V, targets }: Head,
  attrs: HeadAttrs,
  each: (rows: Rows, extents: Extents, h: Tensor, isFirst: boolean) => void,
): Tensor {
  const [N, C] = h.shape;
  const chunks = tokenChunks(h, V, attrs);
  const [nll, max, logSum] = [k.temp([N]), k.temp([N]), k.temp([N])];
  const maxTokens = chunks[0]?.count ?? 0;
  const all = k.temp([maxTokens, V]);
  for (const range of chunks) {
    const logits = k.rows(all, maxTokens, { start: 0, count: range.count });
    const part = k.rows(h, N, range);
    const extents = { n: range.count, v: V, firstRow: range.start };
    runMatmul(k, "nt", { a: part, b: w, y: logits }, { P: 1, M: range.count, K: C, N: V });
    runRowLosses(k, { logits, targets, max, logSum, nll }, extents, attrs);
    each({ logits, targets, max, logSum }, extents, part, range.start === 0);
  }
  return nll;
}

/** The loss and, while the logits of a chunk exist, d loss / d h. */
function runHeadLoss(
  k: WasmContext,
  { loss, dh, ...head }: Head & { loss: Tensor; dh: Tensor | null },
  attrs: HeadAttrs,
): void {
  const { h, w, V, targets } = head;
  const [N, C] = h.shape;
  const scored = countScored(k, targets, attrs);
  const nll = forChunks(k, head, attrs, (rows, extents) => {
    if (dh === null) return;
    runGradients(k, { ...rows, dlogits: rows.logits, dloss: null, scored }, extents, attrs);
    const y = k.rows(dh, N, { start: extents.firstRow, count: extents.n });
    runMatmul(k, "nn", { a: rows.logits, b: w, y }, { P: 1, M: extents.n, K: V, N: C });
  });
  k.run("meanLoss", { nll, n: N, scored, loss }, alone(N));
}

export const lmHeadLoss: WasmOp = (
  k,
  io: HeadIo & { loss: Tensor; dh: Tensor | null },
  { V },
  attrs: HeadAttrs,
) => {
  const dh = io.dh?.dtype === "f16" ? k.temp(io.dh.shape) : io.dh;
  runHeadLoss(k, { ...io, h: widened(k, io.h), dh, V }, attrs);
  if (dh !== null && dh !== io.dh) narrowInto(k, dh, io.dh!);
  return true;
};

export const nf4HeadLoss: WasmOp = (
  k,
  {
    h,
    targets,
    loss,
    dh,
    ...weight
  }: Nf4Operands<Tensor> & Omit<HeadIo, "w"> & { loss: Tensor; dh: Tensor | null },
  { V, C },
  { vocab: _, ...attrs }: HeadAttrs & Nf4Blocks & { vocab: number },
) => {
  runHeadLoss(k, { h, w: rightOf(weight, C, attrs), V, targets, loss, dh }, attrs);
  return true;
};

export const lmHeadLossBackwardW: WasmOp = (
  k,
  io: HeadIo & { dloss: Tensor; dw: Tensor },
  { C, V },
  attrs: HeadAttrs,
) => {
  const scored = countScored(k, io.targets, attrs);
  forChunks(k, { ...io, h: widened(k, io.h), V }, attrs, (rows, extents, h, isFirst) => {
    runGradients(k, { ...rows, dlogits: rows.logits, dloss: io.dloss, scored }, extents, attrs);
    const extent = { P: 1, M: V, K: extents.n, N: C, accumulate: !isFirst };
    runMatmul(k, "tn", { a: rows.logits, b: h, y: io.dw }, extent);
  });
  return true;
};
