/** How attention runs on WebGPU: which kernel, and with what workspace. */
import type { KernelContext } from "../op.ts";
import type { Tensor } from "../tensor.ts";

export interface AttentionExtents {
  readonly B: number;
  readonly T: number;
  readonly S: number;
  readonly G: number;
  readonly H: number;
  readonly D: number;
  readonly queryOffset: number;
  readonly scale: number;
}

interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly keyMask: Tensor | null;
}

interface BackwardInputs extends Inputs {
  readonly dy: Tensor;
  readonly y: Tensor;
  readonly lse: Tensor;
}

const TILE = 32; // rows and keys of a workgroup in attention-tile.wgsl
const THREADS = 64; // of its entry `statistics`

const paramsOf = ({ B, T, S, G, H, D, queryOffset, scale }: AttentionExtents, keyMask: Tensor | null) => ({
  b: B,
  t: T,
  s: S,
  g: G,
  h: H,
  d: D,
  queryOffset,
  scale,
  hasMask: keyMask !== null,
});

const constsOf = ({ D }: AttentionExtents) => ({ CHUNKS: Math.max(1, Math.ceil(D / 32)) });

/** Tiles of queries: those of all heads that share a key head stand in one row of tiles. */
const queryTiles = ({ B, T, G, H }: AttentionExtents): number => B * G * Math.ceil((T * (H / G)) / TILE);

/** Dispatches y and lse (which gets workspace when nobody asked for it). */
export function runAttention(
  k: KernelContext,
  io: Inputs & { readonly y: Tensor; readonly lse: Tensor | null },
  extents: AttentionExtents,
): void {
  const { q, k: key, v, keyMask, y } = io;
  const lse = io.lse ?? k.temp([extents.B, extents.T, extents.H]);
  k.run("attention-tile/forward", {
    bind: { q, k: key, v, keyMask, y, lse },
    params: paramsOf(extents, keyMask),
    grid: queryTiles(extents),
    consts: constsOf(extents),
  });
}

/** (lse, dy·y) of every query, side by side: what the backward kernels need of a row beside its vectors. */
function runStatistics(k: KernelContext, { dy, y, lse }: BackwardInputs, extents: AttentionExtents): Tensor {
  const { B, T, H } = extents;
  const stats = k.temp([B, T, H, 2]);
  k.run("attention-tile/statistics", {
    bind: { dy, yIn: y, lseIn: lse, stats },
    params: paramsOf(extents, null),
    grid: Math.ceil((B * T * H) / THREADS),
  });
  return stats;
}

export function runAttentionBackwardQ(
  k: KernelContext,
  io: BackwardInputs & { readonly dq: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, keyMask, dq } = io;
  k.run("attention-tile/backward_q", {
    bind: { dy, q, k: key, v, statsIn: runStatistics(k, io, extents), keyMask, dq },
    params: paramsOf(extents, keyMask),
    grid: queryTiles(extents),
    consts: constsOf(extents),
  });
}

export function runAttentionBackwardKV(
  k: KernelContext,
  io: BackwardInputs & { readonly dk: Tensor; readonly dv: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, keyMask, dk, dv } = io;
  k.run("attention-tile/backward_kv", {
    bind: { dy, q, k: key, v, statsIn: runStatistics(k, io, extents), keyMask, dk, dv },
    params: paramsOf(extents, keyMask),
    grid: extents.B * extents.G * Math.ceil(extents.S / TILE),
    consts: constsOf(extents),
  });
}
