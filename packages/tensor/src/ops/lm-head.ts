/**
 * The language-model head and its loss without [N, V] logits: tokens are processed in chunks whose logits fit a fixed workspace. A
 * frozen head needs only dh, so the forward pass computes it while it has the logits of a chunk, which saves the backward pass a
 * third matmul with W. After [CCE] (2411.09009), with chunks of tokens instead of vocabulary tiles.
 */

import { EPS, elementBytes, type HostArray } from "../dtype.ts";
import { COUNT, defineOp, type KernelContext, NOT_NEGATIVE, type RowRange, rangesOf } from "../op.ts";
import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { TestRandom } from "../test-random.ts";
import {
  checkLoss,
  countScored,
  drawTargets,
  LOSS_ATTRS,
  LOSS_RANGES,
  type LossAttrs,
  rowLoss,
  runLogitGradients,
  runMeanLoss,
  runRowLosses,
  targetWeight,
} from "./cross-entropy.ts";
import { runFill, runToF16 } from "./elementwise-kernels.ts";
import { runMatmul } from "./matmul-plan.ts";
import { isPanels, operandWindow, type Panels } from "./panels.ts";

/**
 * `chunkBytes` limits the logits of a chunk, unless `chunkTokens` sets its number of rows. `blockColumns` is the number of head rows,
 * at least 256, that make one block of logits. 0: the best for the device.
 */
export const CHUNKS = { chunkTokens: 0, chunkBytes: 0, blockColumns: 0 };
export const CHUNK_RANGES = { chunkTokens: COUNT, chunkBytes: NOT_NEGATIVE, blockColumns: COUNT };
const CHUNK_BYTES = 2 ** 25;
/**
 * On a GPU, chunks are whole blocks of 128 rows of the matmul kernels, unless the logits of one block take more than this. A chunk of
 * 64 rows would leave half of each block empty and read the head twice as often.
 */
const GPU_ROWS = 128;
const GPU_BYTES = 80 * 2 ** 20;
/**
 * Columns of a block of logits on a software driver: that many rows of the head stay in a core's cache while all tokens use them, and
 * rows of such a block, 3,584 bytes apart, do not compete for one cache set, as rows of 196,608 bytes do.
 */
const SOFTWARE_COLUMNS = 896;
/** With a multiple of this, blocks of logits start at aligned offsets for any number of tokens. */
const COLUMN_STEP = 64;
/** The largest offset alignment that a WebGPU adapter may require. */
const BINDING_ALIGNMENT = 256;

/** The number of tokens of a chunk. */
function wantedTokens(
  { adapterClass }: DeviceProfile,
  V: number,
  { chunkTokens, chunkBytes }: Omit<typeof CHUNKS, "blockColumns">,
): number {
  if (chunkTokens > 0) return chunkTokens;
  const wanted = (chunkBytes || CHUNK_BYTES) / (4 * V);
  if (chunkBytes > 0 || adapterClass === "software") return wanted;
  if (wanted >= GPU_ROWS) return Math.floor(wanted / GPU_ROWS) * GPU_ROWS;
  return 4 * V * GPU_ROWS <= GPU_BYTES ? GPU_ROWS : wanted;
}

/** Ranges of tokens whose logits fit the workspace. */
export function tokenChunks(h: Tensor, V: number, chunks: typeof CHUNKS): RowRange[] {
  const wanted = wantedTokens(h.device.profile, V, chunks);
  const N = h.shape[0];
  const step = BINDING_ALIGNMENT / elementBytes(h.dtype); // windows of h and dh start at aligned offsets
  const rows = Math.max(1, Math.floor(wanted / step)) * step;
  return rangesOf(N, rows);
}

interface HeadDims {
  readonly N: number;
  readonly C: number;
  readonly V: number;
}

/** Divides the rows of the head, which are columns of the logits, into blocks. */
function headBlocks(
  k: KernelContext,
  head: Tensor | Panels,
  { maxTokens, C, V }: { maxTokens: number; C: number; V: number },
  blockColumns: number,
): RowRange[] {
  const wanted = blockColumns || (hasEightLanes(k.profile) ? SOFTWARE_COLUMNS : V);
  // Rows of a block have to share a binding. Without blocks the matmul splits the logits into windows itself.
  if (wanted >= V || 4 * maxTokens * V > k.profile.maxBindingBytes) return [{ start: 0, count: V }];
  if (!isPanels(head)) {
    const maxBytes = elementBytes(head.dtype) * wanted * C;
    return k.split(V, [head], { maxBytes, multipleOf: COLUMN_STEP });
  }
  const count = Math.floor(Math.min(wanted, head.rows) / COLUMN_STEP) * COLUMN_STEP || V;
  return rangesOf(V, count);
}

/** The head rows of a block. If they are decoded, as with NF4, the tensor is valid until the next call. */
const headWindow = (k: KernelContext, head: Tensor | Panels, V: number, block: RowRange): Tensor | Panels =>
  block.count === V ? head : operandWindow(k, head, V, block);

/** Called with the gradients of a block of a chunk's logits, [chunk, block]. */
type UseGradients = (dlogits: Tensor, chunk: RowRange, block: RowRange) => void;

interface Chunked {
  readonly h: Tensor;
  readonly head: Tensor | Panels;
  readonly targets: Tensor;
  readonly dloss?: Tensor | null;
}

/** Computes the logits chunk by chunk; returns nll[N] of all rows, and calls `use` with the gradients of each block. */
function runChunks(
  k: KernelContext,
  { h, head, targets, dloss = null }: Chunked,
  { N, C, V }: HeadDims,
  { ignoreIndex, labelSmoothing, ...chunking }: LossAttrs & typeof CHUNKS,
  use: UseGradients | null,
): Tensor {
  const chunks = tokenChunks(h, V, chunking);
  const maxTokens = chunks[0]?.count ?? 0;
  const nll = k.temp([N]);
  const shift = { max: k.temp([N]), logSum: k.temp([N]) };
  const memory = k.temp([maxTokens * V]);
  const blocks = headBlocks(k, head, { maxTokens, C, V }, chunking.blockColumns);
  for (const chunk of chunks) {
    const rows = chunk.count;
    const partOf = ({ start, count }: RowRange) =>
      k.rows(memory, memory.size, { start: start * rows, count: count * rows });
    for (const block of blocks) {
      const operands = { a: k.rows(h, N, chunk), b: headWindow(k, head, V, block), y: partOf(block) };
      runMatmul(k, "nt", operands, { P: 1, M: rows, K: C, N: block.count });
    }
    const logits = partOf({ start: 0, count: V });
    const layout = { rows, firstRow: chunk.start, V, blockColumns: blocks[0].count };
    const extents = { ...layout, ignoreIndex, labelSmoothing };
    runRowLosses(k, { logits, targets, ...shift, nll }, extents);
    if (use === null) continue;
    runLogitGradients(k, { logits, targets, ...shift, dloss, dlogits: null }, extents);
    for (const block of blocks) use(partOf(block), chunk, block);
  }
  return nll;
}

/** Dispatches the loss over a head [V,C], and dh if it is not null. */
export function runHeadLoss(
  k: KernelContext,
  { loss, dh, ...io }: Chunked & { loss: Tensor; dh: Tensor | null },
  dims: HeadDims,
  attrs: LossAttrs & typeof CHUNKS,
): void {
  const { N, C, V } = dims;
  let sum: Tensor | null = null; // dh of a chunk in f32, if accumulating in dh itself would round to f16 after every block
  const addToGradient: UseGradients = (dlogits, chunk, block) => {
    const result = k.rows(dh!, N, chunk);
    const isRounded = result.dtype === "f16" && block.count < V;
    if (isRounded) sum ??= k.temp([chunk.count, C]);
    const y = isRounded ? k.rows(sum!, sum!.shape[0], { start: 0, count: chunk.count }) : result;
    const operands = { a: dlogits, b: headWindow(k, io.head, V, block), y };
    const extents = { P: 1, M: chunk.count, K: block.count, N: C };
    runMatmul(k, "nn", operands, { ...extents, accumulate: block.start > 0 });
    if (isRounded && block.start + block.count === V) runToF16(k, y, result);
  };
  const nll = runChunks(k, io, dims, attrs, dh && addToGradient);
  runMeanLoss(k, { targets: io.targets, nll, loss }, { rows: N, ignoreIndex: attrs.ignoreIndex });
}

/** Calls `visit` for each row with a target, with its loss and the derivative of that with respect to the logit of class v. */
function forScoredRows(
  { h, w, targets }: Record<"h" | "w" | "targets", HostArray>,
  { N, C, V }: HeadDims,
  { ignoreIndex, labelSmoothing }: LossAttrs,
  visit: (n: number, nll: number, derivative: (v: number) => number) => void,
): void {
  const logits = new Float64Array(V);
  for (let n = 0; n < N; n++) {
    if (targets[n] === ignoreIndex) continue;
    for (let v = 0; v < V; v++) {
      let dot = 0;
      for (let c = 0; c < C; c++) dot += h[n * C + c] * w[v * C + c];
      logits[v] = dot;
    }
    const { max, logSum, nll } = rowLoss(logits, 0, V, targets[n], labelSmoothing);
    visit(n, nll, (v) => Math.exp(logits[v] - max - logSum) - targetWeight(v, targets[n], V, labelSmoothing));
  }
}

/** The reference of loss and d loss / d h. */
export function referenceHeadLoss(
  { h, w, targets, loss, dh }: Record<"h" | "w" | "targets" | "loss", HostArray> & { dh: HostArray | null },
  dims: HeadDims,
  attrs: LossAttrs,
): void {
  const { C, V } = dims;
  const scored = Math.max(1, countScored(targets, attrs.ignoreIndex));
  let total = 0;
  forScoredRows({ h, w, targets }, dims, attrs, (n, nll, derivative) => {
    total += nll;
    if (!dh) return;
    for (let v = 0; v < V; v++) {
      const d = derivative(v) / scored;
      for (let c = 0; c < C; c++) dh[n * C + c] += d * w[v * C + c];
    }
  });
  loss[0] = total / scored;
}

/** dh adds a second matmul with W and the gradients of the logits. */
export const headLossFlops = ({ N, C, V }: Dims, _attrs: object, has: (output: string) => boolean): number =>
  (has("dh") ? 2 : 1) * (2 * N * C * V + 4 * N * V);

/** Draws a head, and tokens in one chunk or several. */
function drawHead(pick: TestRandom) {
  const four = pick.oneOf([4, 1]);
  const V = four * pick.int(1, pick.oneOf([200, 200, 800]) / four);
  const { attrs, values } = drawTargets(pick, V);
  const dims = { N: pick.int(1, 150), C: four * pick.int(1, Math.floor(70 / four)), V };
  const [chunkTokens, blockColumns] = [pick.oneOf([0, 64]), pick.oneOf([0, 64, 300])];
  return { dims, values, attrs: { ...attrs, chunkTokens, blockColumns } };
}

export const lmHeadLoss = defineOp({
  name: "lmHeadLoss",
  doc: "crossEntropy(h · wᵀ, targets) in chunks of tokens; the residual dh is d loss / d h",
  sig: "h[N,C] w[V,C] targets:i32[N] -> loss:f32[] | dh[N,C]",
  attrs: { ...LOSS_ATTRS, ...CHUNKS },
  ranges: { ...LOSS_RANGES, ...CHUNK_RANGES },
  check: checkLoss,
  reference: (io, { N, C, V }, attrs) => referenceHeadLoss(io, { N, C, V }, attrs),
  kernel: (k, { w: head, ...io }, { N, C, V }, attrs) => runHeadLoss(k, { ...io, head }, { N, C, V }, attrs),
  draw: drawHead,
  // Logits are sums of C products; the exponential turns their absolute error into a relative one.
  close: ({ C, V }) => ({ rel: (64 + 4 * Math.sqrt(C * V)) * EPS, abs: 1e-6 }),
  flops: headLossFlops,
});

export const lmHeadLossBackwardW = defineOp({
  name: "lmHeadLossBackwardW",
  doc: "dw = dloss · d loss / d w of lmHeadLoss, with the logits of each chunk recomputed",
  sig: "dloss:f32[] h[N,C] w[V,C] targets:i32[N] -> dw:f32[V,C]",
  attrs: { ...LOSS_ATTRS, ...CHUNKS },
  ranges: { ...LOSS_RANGES, ...CHUNK_RANGES },
  reference({ dloss, h, w, targets, dw }, { N, C, V }, attrs) {
    const scored = countScored(targets, attrs.ignoreIndex);
    forScoredRows({ h, w, targets }, { N, C, V }, attrs, (n, _, derivative) => {
      for (let v = 0; v < V; v++) {
        const d = (derivative(v) * dloss[0]) / scored;
        for (let c = 0; c < C; c++) dw[v * C + c] += d * h[n * C + c];
      }
    });
  },
  kernel(k, { w: head, dw, ...io }, { N, C, V }, attrs) {
    if (N === 0) return runFill(k, dw, 0); // no chunk would write it
    runChunks(k, { ...io, head }, { N, C, V }, attrs, (dlogits, chunk, block) => {
      const operands = { a: dlogits, b: k.rows(io.h, N, chunk), y: k.rows(dw, V, block) };
      const extents = { P: 1, M: block.count, K: chunk.count, N: C };
      runMatmul(k, "tn", operands, { ...extents, accumulate: chunk.start > 0 });
    });
  },
  draw: drawHead,
  close: ({ N, C, V }) => ({ rel: (64 + 4 * Math.sqrt(C * V) + Math.sqrt(N)) * EPS, abs: 1e-6 }),
  flops: ({ N, C, V }) => 4 * N * C * V + 8 * N * V,
});
