/** Dispatches attention and its gradients on WebGPU. attention-kernels.ts chooses the kernel, attention-windows.ts the windows. */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";
import {
  type AttentionExtents,
  type AttentionInputs,
  headCapacity,
  isFewQueries,
  rowsPerKeyHead,
  type TiledKernel,
  tiledKernel,
} from "./attention-kernels.ts";
import { forWindows, type Window, wholeWindow } from "./attention-windows.ts";
import { runAccumulate } from "./elementwise-kernels.ts";
import { toF16WithExponents } from "./f16-rows.ts";
import { runSum } from "./reduce.ts";

interface BackwardInputs extends AttentionInputs {
  readonly dy: Tensor;
  readonly y: Tensor;
  readonly lse: Tensor;
}

/** Entry points of attention-tile and attention-rows. The other tiled kernels have one `backward` for both gradients. */
type Pass = "forward" | "backward_q" | "backward_kv";

const TILE = 32; // rows of a tile of attention-tile and attention-rows; in backward_kv, keys
const BLOCK = 64; // the same of attention-block and attention-matrix
const THREADS = 64; // of attention-tile/statistics and attention-tile/pack_mask
const SPLIT_KEYS = 256; // keys of a workgroup of attention-few
/** So many workgroups of attention-block keep a large GPU busy; with fewer, several share the rows of a key tile. */
const ENOUGH_BLOCKS = 512;
const MIN_ROW_TILES = 4; // of a workgroup that shares them

/** What a kernel's mask binding holds: the parameter `maskKind`. */
const MASK_KIND = { none: 0, keyMask: 1, segments: 2 } as const;

interface Mask {
  readonly mask: Tensor | null;
  readonly maskKind: number;
}

const paramsOf = ({ extents, firstQuery, firstKey }: Window, maskKind: number) => {
  const { B, T, S, G, H, D, queryOffset, scale } = extents;
  return { b: B, t: T, s: S, g: G, h: H, d: D, queryOffset, scale, maskKind, firstQuery, firstKey };
};

/** The key mask as it is, or packed with the segments: a pair (segment, key mask) per key, so that both take one binding. */
function maskOf(k: KernelContext, { keyMask, segments }: AttentionInputs, extents: AttentionExtents): Mask {
  const kindOfKeyMask = keyMask === null ? MASK_KIND.none : MASK_KIND.keyMask;
  if (segments === null) return { mask: keyMask, maskKind: kindOfKeyMask };
  const { B, S } = extents;
  const mask = k.temp([B, S, 2], "u32");
  k.run("attention-tile/pack_mask", {
    bind: { keyMask, segments, maskOut: mask },
    params: paramsOf(wholeWindow(extents), kindOfKeyMask),
    grid: Math.ceil((B * S) / THREADS),
  });
  return { mask, maskKind: MASK_KIND.segments };
}

/** Queries, keys, values or their gradients as the kernel reads them: subgroup matrices take f16 rows with scale exponents. */
const operandsOf = (kernel: TiledKernel, k: KernelContext, D: number, ...heads: Tensor[]): Tensor[] =>
  kernel === "attention-matrix" ? heads.map((x) => toF16WithExponents(k, x, D)) : heads;

/** Tiles of the side that has the sums: query rows per key head, or keys in backward_kv. */
function tilesIn(extents: AttentionExtents, pass: Pass, side: number): number {
  const { B, S, G } = extents;
  return B * G * Math.ceil((pass === "backward_kv" ? S : rowsPerKeyHead(extents)) / side);
}

/** One pass over one window by a tiled kernel; tensors by their names in the kernel. */
interface TiledCall {
  readonly kernel: TiledKernel;
  readonly window: Window;
  readonly mask: Mask;
  /** Windows of q, k, v and dy. */
  readonly heads: Readonly<Record<string, Tensor>>;
  /** What is kept per query, bound whole: lse or statsIn. */
  readonly perQuery: Readonly<Record<string, Tensor>>;
  /** Windows of y, dq, or dk and dv. */
  readonly out: Readonly<Record<string, Tensor>>;
}

function runTiled(k: KernelContext, pass: Pass, call: TiledCall): void {
  const { kernel, window, mask, heads, perQuery, out } = call;
  if (kernel === "attention-block" || kernel === "attention-matrix") {
    runBlocks(k, pass, call);
    return;
  }
  const readsTextures = kernel === "attention-rows";
  const operands = Object.entries(heads).map(
    ([name, x]) => [name, readsTextures ? k.texture(x) : x] as const,
  );
  k.run(`${kernel}/${pass}`, {
    bind: { ...Object.fromEntries(operands), mask: mask.mask, ...perQuery, ...out },
    params: paramsOf(window, mask.maskKind),
    grid: tilesIn(window.extents, pass, TILE),
    consts: { MAX_D: headCapacity(window.extents.D) },
  });
  if (readsTextures) for (const [, texture] of operands) texture.dispose();
}

/** Workgroups that share the rows of a key tile. Each writes its own dk and dv, which together are at most as large as q. */
function rowSplits({ profile }: KernelContext, extents: AttentionExtents): number {
  const { B, S, G, H, D } = extents;
  const rowTiles = Math.ceil(rowsPerKeyHead(extents) / BLOCK);
  return Math.max(
    1,
    Math.min(
      H / G,
      Math.floor(ENOUGH_BLOCKS / tilesIn(extents, "backward_kv", BLOCK)),
      Math.floor(rowTiles / MIN_ROW_TILES),
      Math.floor(profile.maxBindingBytes / (4 * B * S * G * D)),
    ),
  );
}

/** attention-block and attention-matrix, which have the same bindings: `out` is y, dq or dv, and `dk` is there for backward_kv. */
function runBlocks(k: KernelContext, pass: Pass, call: TiledCall): void {
  const { kernel, window, mask, heads, perQuery, out } = call;
  const { extents } = window;
  const { B, S, G, D } = extents;
  const capacity = headCapacity(D);
  const isKV = pass === "backward_kv";
  const isMatrix = kernel === "attention-matrix";
  const splits = isKV ? rowSplits(k, extents) : 1;
  // Bindings that an entry point names without using them: dk in all but backward_kv, dy in attention-matrix/forward.
  const { dk = k.temp([4]), ...rest } = out;
  const first = rest.y ?? rest.dq ?? rest.dv;
  const unused = isMatrix && pass === "forward" ? { dy: heads.q } : {};
  const sums = splits > 1 ? [first, dk].map(() => k.temp([splits, B, S, G, D])) : [first, dk];
  const threads = capacity > 128 ? 256 : 128;
  k.run(`${kernel}/${pass === "forward" ? "forward" : "backward"}`, {
    bind: { ...heads, mask: mask.mask, ...perQuery, out: sums[0], dk: sums[1], ...unused },
    params: { ...paramsOf(window, mask.maskKind), splits },
    grid: splits * tilesIn(extents, pass, BLOCK),
    consts: { MAX_D: capacity, ...(!isMatrix && { THREADS: threads }), KEYS_LEFT: Number(isKV) },
  });
  if (splits === 1) return;
  for (const [i, total] of [first, dk].entries()) {
    runSum(k, sums[i], total, { outer: 1, length: splits, inner: total.size }, 1);
    sums[i].dispose();
  }
}

/** attention-few: each workgroup takes a range of the keys of one query, and a second dispatch combines the results. */
function runFew(
  k: KernelContext,
  window: Window,
  { q, k: key, v, y, lse }: AttentionInputs & { readonly y: Tensor; readonly lse: Tensor },
  { mask, maskKind }: Mask,
): void {
  const { extents, ofQueries, ofKeys } = window;
  const { B, T, S, H, D, queryOffset } = extents;
  const queries = B * T * H;
  const splits = Math.max(1, Math.ceil(Math.min(S, T + queryOffset) / SPLIT_KEYS));
  const { b: _, ...shared } = paramsOf(window, maskKind);
  const params = { ...shared, queries, splits };
  const consts = { MAX_D: headCapacity(D) };
  const sums = k.temp([queries, splits, D]);
  const maxima = k.temp([queries, splits, 2]);
  k.run("attention-few/split", {
    bind: { q: ofQueries(q), k: ofKeys(key), v: ofKeys(v), mask, sums, maxima },
    params,
    grid: queries * splits,
    consts,
  });
  k.run("attention-few/combine", {
    bind: { sumsIn: sums, maximaIn: maxima, y: ofQueries(y), lse },
    params,
    grid: queries,
    consts,
  });
  for (const x of [sums, maxima]) x.dispose();
}

/** Dispatches y and lse; without a tensor for lse, it goes to workspace. */
export function runAttention(
  k: KernelContext,
  io: AttentionInputs & { readonly y: Tensor; readonly lse: Tensor | null },
  extents: AttentionExtents,
): void {
  const { q, k: key, v, y } = io;
  const lse = io.lse ?? k.temp([extents.B, extents.T, extents.H, 2]);
  const mask = maskOf(k, io, extents);
  if (isFewQueries(k.profile, extents)) {
    const operands = { byQuery: [q, y], byKey: [key, v], written: [y] };
    forWindows(k, extents, operands, (window) => runFew(k, window, { ...io, lse }, mask));
    return;
  }
  const kernel = tiledKernel(k.profile, extents);
  const [queries, keys, values] = operandsOf(kernel, k, extents.D, q, key, v);
  const operands = { byQuery: [queries, y], byKey: [keys, values], written: [y] };
  forWindows(k, extents, operands, (window) => {
    const { ofQueries, ofKeys } = window;
    const heads = { q: ofQueries(queries), k: ofKeys(keys), v: ofKeys(values) };
    runTiled(k, "forward", { kernel, window, mask, heads, perQuery: { lse }, out: { y: ofQueries(y) } });
  });
}

/** stats[B,T,H,4] = (lse, dy·y, scale): what the gradient kernels need of each query besides its vectors. */
function runStatistics(k: KernelContext, { dy, y, lse }: BackwardInputs, extents: AttentionExtents): Tensor {
  const { B, T, H } = extents;
  const stats = k.temp([B, T, H, 4]);
  forWindows(k, extents, { byQuery: [dy, y], byKey: [], written: [] }, (window) =>
    k.run("attention-tile/statistics", {
      bind: { dy: window.ofQueries(dy), yIn: window.ofQueries(y), lseIn: lse, stats },
      params: paramsOf(window, MASK_KIND.none),
      grid: Math.ceil((window.extents.B * window.extents.T * H) / THREADS),
    }),
  );
  return stats;
}

/** What both gradients start from: the kernel and its operands, and for each window its part of a call. */
function prepareBackward(k: KernelContext, io: BackwardInputs, extents: AttentionExtents) {
  const mask = maskOf(k, io, extents);
  const perQuery = { statsIn: runStatistics(k, io, extents) };
  const kernel = tiledKernel(k.profile, extents);
  const [dy, q, key, v] = operandsOf(kernel, k, extents.D, io.dy, io.q, io.k, io.v);
  const callOf = (window: Window) => {
    const { ofQueries, ofKeys } = window;
    const heads = { dy: ofQueries(dy), q: ofQueries(q), k: ofKeys(key), v: ofKeys(v) };
    return { kernel, window, mask, heads, perQuery };
  };
  return { byQuery: [dy, q], byKey: [key, v], callOf };
}

export function runAttentionBackwardQ(
  k: KernelContext,
  io: BackwardInputs & { readonly dq: Tensor },
  extents: AttentionExtents,
): void {
  const { byQuery, byKey, callOf } = prepareBackward(k, io, extents);
  const operands = { byQuery: [...byQuery, io.dq], byKey, written: [io.dq] };
  forWindows(k, extents, operands, (window) =>
    runTiled(k, "backward_q", { ...callOf(window), out: { dq: window.ofQueries(io.dq) } }),
  );
}

export function runAttentionBackwardKV(
  k: KernelContext,
  io: BackwardInputs & { readonly dk: Tensor; readonly dv: Tensor },
  extents: AttentionExtents,
): void {
  const { byQuery, byKey, callOf } = prepareBackward(k, io, extents);
  let sequence = -1; // firstKey of the sequence whose dk and dv have been written by an earlier window
  const written = [io.dk, io.dv];
  forWindows(k, extents, { byQuery, byKey: [...byKey, ...written], written }, (window) => {
    const totals = [window.ofKeys(io.dk), window.ofKeys(io.dv)];
    const isFirst = window.firstKey !== sequence;
    sequence = window.firstKey;
    const [dk, dv] = isFirst ? totals : totals.map(({ shape, dtype }) => k.temp(shape, dtype));
    runTiled(k, "backward_kv", { ...callOf(window), out: { dk, dv } });
    if (isFirst) return;
    for (const [i, x] of [dk, dv].entries()) {
      runAccumulate(k, totals[i], x);
      x.dispose();
    }
  });
}
