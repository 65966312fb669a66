/** How attention runs on WebGPU: which kernel, and with what workspace. */
import type { KernelContext, KernelEntry } from "../op.ts";
import { hasEightLanes } from "../profile.ts";
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
  readonly segments: Tensor | null;
}

interface BackwardInputs extends Inputs {
  readonly dy: Tensor;
  readonly y: Tensor;
  readonly lse: Tensor;
}

const TILE = 32; // rows of a workgroup, or keys in backward_kv
const THREADS = 64; // of attention-tile/statistics and /join_marks
/** Room for D in both files: few steps, since each is a pipeline. */
const ROOMS = [64, 128, 256, 512, 1024, 4096];
const MOST_ROOM_ROWS = 256; // past it, private memory would be too large for attention-rows.wgsl

/** What keys are marked with, as the kernels know it. */
const NO_MARKS = 0;
const MASK = 1;
const SEGMENTS = 2;

const paramsOf = ({ B, T, S, G, H, D, queryOffset, scale }: AttentionExtents, marks: number) => ({
  b: B,
  t: T,
  s: S,
  g: G,
  h: H,
  d: D,
  queryOffset,
  scale,
  marks,
});

/** The key mask as it is, or joined with the segments: (segment, 0 where padding) of each key. */
function marksOf(
  k: KernelContext,
  { keyMask, segments }: Inputs,
  extents: AttentionExtents,
): { readonly marks: Tensor | null; readonly kind: number } {
  if (segments === null) return { marks: keyMask, kind: keyMask === null ? NO_MARKS : MASK };
  const { B, S } = extents;
  const marks = k.temp([B, S, 2], "u32");
  k.run("attention-tile/join_marks", {
    bind: { keyMask, segments, marksOut: marks },
    params: paramsOf(extents, keyMask === null ? NO_MARKS : MASK),
    grid: Math.ceil((B * S) / THREADS),
  });
  return { marks, kind: SEGMENTS };
}

type Entry = "forward" | "backward_q" | "backward_kv";

interface Choice {
  readonly kernel: KernelEntry;
  readonly consts: Readonly<Record<string, number>>;
  /** How the kernel takes the vectors of queries, keys and values: as they are, or as textures. */
  readonly vectors: (tensor: Tensor) => Tensor;
}

/** The kernel for these extents, and how much of D it has room for. */
function choose(k: KernelContext, entry: Entry, { D }: AttentionExtents): Choice {
  const room = ROOMS.find((most) => D <= most) ?? D;
  const consts = { MOST_D: room };
  if (hasEightLanes(k.profile) && D % 4 === 0 && room <= MOST_ROOM_ROWS) {
    return { kernel: `attention-rows/${entry}`, consts, vectors: (tensor) => k.image(tensor) };
  }
  return { kernel: `attention-tile/${entry}`, consts, vectors: (tensor) => tensor };
}

/** Tiles of queries: those of all heads that share a key head stand in one row of tiles. */
const queryTiles = ({ B, T, G, H }: AttentionExtents): number => B * G * Math.ceil((T * (H / G)) / TILE);

/** Dispatches y and lse (which gets workspace when nobody asked for it). */
export function runAttention(
  k: KernelContext,
  io: Inputs & { readonly y: Tensor; readonly lse: Tensor | null },
  extents: AttentionExtents,
): void {
  const { q, k: key, v, y } = io;
  const lse = io.lse ?? k.temp([extents.B, extents.T, extents.H, 2]);
  const { kernel, consts, vectors } = choose(k, "forward", extents);
  const { marks, kind } = marksOf(k, io, extents);
  k.run(kernel, {
    bind: { q: vectors(q), k: vectors(key), v: vectors(v), marks, y, lse },
    params: paramsOf(extents, kind),
    grid: queryTiles(extents),
    consts,
  });
}

/** (lse, dy·y) of every query in one vector: what the backward kernels need of a row beside its own vectors. */
function runStatistics(k: KernelContext, { dy, y, lse }: BackwardInputs, extents: AttentionExtents): Tensor {
  const { B, T, H } = extents;
  const stats = k.temp([B, T, H, 4]);
  k.run("attention-tile/statistics", {
    bind: { dy, yIn: y, lseIn: lse, stats },
    params: paramsOf(extents, NO_MARKS),
    grid: Math.ceil((B * T * H) / THREADS),
  });
  return stats;
}

export function runAttentionBackwardQ(
  k: KernelContext,
  io: BackwardInputs & { readonly dq: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, dq } = io;
  const { kernel, consts, vectors } = choose(k, "backward_q", extents);
  const { marks, kind } = marksOf(k, io, extents);
  k.run(kernel, {
    bind: {
      dy: vectors(dy),
      q: vectors(q),
      k: vectors(key),
      v: vectors(v),
      statsIn: runStatistics(k, io, extents),
      marks,
      dq,
    },
    params: paramsOf(extents, kind),
    grid: queryTiles(extents),
    consts,
  });
}

export function runAttentionBackwardKV(
  k: KernelContext,
  io: BackwardInputs & { readonly dk: Tensor; readonly dv: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, dk, dv } = io;
  const { kernel, consts, vectors } = choose(k, "backward_kv", extents);
  const { marks, kind } = marksOf(k, io, extents);
  k.run(kernel, {
    bind: {
      dy: vectors(dy),
      q: vectors(q),
      k: vectors(key),
      v: vectors(v),
      statsIn: runStatistics(k, io, extents),
      marks,
      dk,
      dv,
    },
    params: paramsOf(extents, kind),
    grid: extents.B * extents.G * Math.ceil(extents.S / TILE),
    consts,
  });
}
