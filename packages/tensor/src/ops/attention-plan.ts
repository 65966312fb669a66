/** How attention runs on WebGPU: which kernel, over which windows of its operands, and with what workspace. */
import { elementBytes } from "../dtype.ts";
import type { KernelContext, RowRange } from "../op.ts";
import { hasEightLanes } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";
import { runAccumulate } from "./elementwise-kernels.ts";
import { toF16WithExponents } from "./f16-rows.ts";
import { runSum } from "./reduce.ts";

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

const TILE = 32; // rows of a workgroup, or keys in backward_kv, of attention-tile.wgsl and attention-rows.wgsl
const BLOCK = 64; // of attention-block.wgsl and attention-matrix.wgsl
const THREADS = 64; // of attention-tile/statistics and /join_marks
const PART = 256; // keys of a workgroup of attention-few.wgsl
/** Room for D in all files: few steps, since each is a pipeline. */
const ROOMS = [64, 128, 256, 512, 1024, 4096];
const MOST_ROOM_ROWS = 256; // past it, private memory would be too large for attention-rows.wgsl
const MOST_ROOM_BLOCK = 256; // past it, sums would not fit the registers of attention-block.wgsl
const [MIN_MATRIX_D, MAX_MATRIX_D] = [16, 128]; // a unit's depth, and what the sums of attention-matrix.wgsl have room for
const MOST_ROOM_FEW = 1024; // past it, workgroup memory would be for attention-few.wgsl
/** Rows of a tile that attention-few.wgsl does better without: a quarter. */
const FEW_ROWS = 8;
/** Workgroups of attention-block.wgsl that keep a large GPU busy; with fewer, several share the rows of a key tile. */
const ENOUGH_BLOCKS = 512;
const LEAST_ROW_TILES = 4; // of such a workgroup

/** What keys are marked with, as the kernels know it. */
const NO_MARKS = 0;
const MASK = 1;
const SEGMENTS = 2;

interface Marks {
  readonly marks: Tensor | null;
  readonly kind: number;
}

/** A part whose operands fit bindings: all, or queries of one sequence with all of its keys. */
interface Window {
  readonly extents: AttentionExtents;
  /** Where it starts in lse and statistics, and in marks: they are bound whole. */
  readonly firstQuery: number;
  readonly firstKey: number;
  readonly ofQueries: (tensor: Tensor) => Tensor;
  readonly ofKeys: (tensor: Tensor) => Tensor;
}

const whole = (extents: AttentionExtents): Window => {
  const all = (tensor: Tensor) => tensor;
  return { extents, firstQuery: 0, firstKey: 0, ofQueries: all, ofKeys: all };
};

/** Windows over the operands by query, [B,T,..], and by key, [B,S,..]. Throws `T-TOO-LARGE` where one sequence's keys do not fit. */
function windowsOf(
  k: KernelContext,
  extents: AttentionExtents,
  byQuery: readonly Tensor[],
  byKey: readonly Tensor[],
): Window[] {
  const { B, T, S, H, queryOffset } = extents;
  const bytes = (tensor: Tensor) => tensor.size * elementBytes(tensor.dtype);
  const largest = Math.max(...[...byQuery, ...byKey].map(bytes));
  if (largest <= k.profile.maxBindingBytes) return [whole(extents)];
  return Array.from({ length: B }, (_, b): Window[] => {
    const sequence: RowRange = { start: b, count: 1 };
    const ofKeys = (tensor: Tensor) => k.rows(tensor, B, sequence);
    k.split(1, byKey.map(ofKeys));
    const queries = byQuery.map((tensor) => k.rows(tensor, B, sequence));
    return k.split(T, queries).map(({ start, count }) => ({
      extents: { ...extents, B: 1, T: count, queryOffset: queryOffset + start },
      firstQuery: (b * T + start) * H,
      firstKey: b * S,
      ofQueries: (tensor) => k.rows(tensor, B * T, { start: b * T + start, count }),
      ofKeys,
    }));
  }).flat();
}

const paramsOf = ({ extents, firstQuery, firstKey }: Window, marks: number) => {
  const { B, T, S, G, H, D, queryOffset, scale } = extents;
  return { b: B, t: T, s: S, g: G, h: H, d: D, queryOffset, scale, marks, firstQuery, firstKey };
};

/** The key mask as it is, or joined with the segments: (segment, 0 where padding) of each key. */
function marksOf(k: KernelContext, { keyMask, segments }: Inputs, extents: AttentionExtents): Marks {
  if (segments === null) return { marks: keyMask, kind: keyMask === null ? NO_MARKS : MASK };
  const { B, S } = extents;
  const marks = k.temp([B, S, 2], "u32");
  k.run("attention-tile/join_marks", {
    bind: { keyMask, segments, marksOut: marks },
    params: paramsOf(whole(extents), keyMask === null ? NO_MARKS : MASK),
    grid: Math.ceil((B * S) / THREADS),
  });
  return { marks, kind: SEGMENTS };
}

type Entry = "forward" | "backward_q" | "backward_kv";

type Family = "attention-block" | "attention-matrix" | "attention-rows" | "attention-tile";

interface Call {
  readonly family: Family;
  /** Queries, keys and values, by their names in the kernel: textures where it reads those. */
  readonly vectors: Readonly<Record<string, Tensor>>;
  readonly others: Readonly<Record<string, Tensor | null>>;
  readonly out: Readonly<Record<string, Tensor>>;
  readonly kind: number;
}

const roomFor = (D: number): number => ROOMS.find((most) => D <= most) ?? D;

function familyOf(k: KernelContext, extents: AttentionExtents): Family {
  const { profile } = k;
  const { D } = extents;
  if (D % 4 > 0) return "attention-tile";
  if (hasEightLanes(profile)) return roomFor(D) <= MOST_ROOM_ROWS ? "attention-rows" : "attention-tile";
  if (fitsSubgroupMatrices(k, extents)) return "attention-matrix";
  return roomFor(D) <= MOST_ROOM_BLOCK ? "attention-block" : "attention-tile";
}

/** Whether a kernel that takes heads in vectors runs these extents, where their width is a multiple of 4. */
export const wantsVectors = (k: KernelContext, extents: AttentionExtents): boolean =>
  !isFew(k, extents) && familyOf(k, extents) !== "attention-tile";

/** Whether subgroup matrices compute it: operands of any type become halves then, which the device's precision allows. */
function fitsSubgroupMatrices({ profile }: KernelContext, { T, G, H, D }: AttentionExtents): boolean {
  const { subgroupMatrixQueries } = tilesOf(profile);
  const isEnough = subgroupMatrixQueries > 0 && T * (H / G) >= subgroupMatrixQueries;
  return profile.subgroupMatrices === true && isEnough && D >= MIN_MATRIX_D && D <= MAX_MATRIX_D;
}

/** Vectors as the kernels of a family take them. */
const operandsOf = (
  k: KernelContext,
  family: Family,
  { D }: AttentionExtents,
  ...vectors: Tensor[]
): Tensor[] => (family === "attention-matrix" ? vectors.map((x) => toF16WithExponents(k, x, D)) : vectors);

/** Tiles of one side: of the rows of all heads that share a key head, or of its keys. */
function blocksOf({ B, T, S, G, H }: AttentionExtents, entry: Entry, side: number): number {
  return B * G * Math.ceil((entry === "backward_kv" ? S : T * (H / G)) / side);
}

/** Runs the kernel for these extents, with room for their D. */
function runTiles(k: KernelContext, entry: Entry, window: Window, call: Call): void {
  const { family, vectors, others, out, kind } = call;
  if (family === "attention-block" || family === "attention-matrix") {
    runBlocks(k, entry, window, call);
    return;
  }
  const inRows = family === "attention-rows";
  const textures = Object.entries(vectors).map(([name, t]) => [name, inRows ? k.texture(t) : t] as const);
  k.run(`${family}/${entry}`, {
    bind: { ...Object.fromEntries(textures), ...others, ...out },
    params: paramsOf(window, kind),
    grid: blocksOf(window.extents, entry, TILE),
    consts: { MOST_D: roomFor(window.extents.D) },
  });
  if (inRows) for (const [, texture] of textures) texture.dispose();
}

/** How many workgroups share the rows of a key tile: with the sums of each, dk and dv are at most as large as q. */
function partsOf({ profile }: KernelContext, extents: AttentionExtents): number {
  const { B, T, S, G, H, D } = extents;
  const rowTiles = Math.ceil((T * (H / G)) / BLOCK);
  return Math.max(
    1,
    Math.min(
      H / G,
      Math.floor(ENOUGH_BLOCKS / blocksOf(extents, "backward_kv", BLOCK)),
      Math.floor(rowTiles / LEAST_ROW_TILES),
      Math.floor(profile.maxBindingBytes / (4 * B * S * G * D)),
    ),
  );
}

function runBlocks(
  k: KernelContext,
  entry: Entry,
  window: Window,
  { family, vectors, others, out, kind }: Call,
): void {
  const { extents } = window;
  const { B, S, G, D } = extents;
  const room = roomFor(D);
  const isKV = entry === "backward_kv";
  const parts = isKV ? partsOf(k, extents) : 1;
  // Bindings that an entry names and has no use for: forward reads no dy, and only backward_kv writes to dk.
  const { dk = k.temp([4]), ...rest } = out;
  const first = rest.y ?? rest.dq ?? rest.dv;
  const sums = parts > 1 ? [first, dk].map(() => k.temp([parts, B, S, G, D])) : [first, dk];
  const usesSubgroupMatrices = family === "attention-matrix";
  const unused = usesSubgroupMatrices && entry === "forward" ? { dy: vectors.q } : {};
  const threads = room > (isKV ? 64 : 128) ? 256 : 128;
  k.run(`${family}/${entry === "forward" ? "forward" : "backward"}`, {
    bind: { ...vectors, ...others, out: sums[0], dk: sums[1], ...unused },
    params: { ...paramsOf(window, kind), parts },
    grid: parts * blocksOf(extents, entry, BLOCK),
    consts: { MOST_D: room, ...(!usesSubgroupMatrices && { THREADS: threads }), KEYS_LEFT: Number(isKV) },
  });
  if (parts === 1) return;
  for (const [i, total] of [first, dk].entries()) {
    runSum(k, sums[i], total, { outer: 1, length: parts, inner: total.size }, 1);
    sums[i].dispose();
  }
}

/** The forward pass of few queries: the keys in parts, each a workgroup, and then their sum. */
function runFew(
  k: KernelContext,
  window: Window,
  { q, k: key, v, y, lse }: Inputs & { readonly y: Tensor; readonly lse: Tensor },
  { marks, kind }: Marks,
): void {
  const { B, T, S, G, H, D, queryOffset, scale } = window.extents;
  const { firstQuery, firstKey, ofQueries, ofKeys } = window;
  const queries = B * T * H;
  const parts = Math.max(1, Math.ceil(Math.min(S, T + queryOffset) / PART));
  const consts = { MOST_D: roomFor(D) };
  const extents = { t: T, s: S, g: G, h: H, d: D, queryOffset, scale, marks: kind };
  const params = { ...extents, firstQuery, firstKey, queries, parts };
  const sums = k.temp([queries, parts, D]);
  const tops = k.temp([queries, parts, 2]);
  k.run("attention-few/part", {
    bind: { q: ofQueries(q), k: ofKeys(key), v: ofKeys(v), marks, sums, tops },
    params,
    grid: queries * parts,
    consts,
  });
  k.run("attention-few/join", {
    bind: { sumsIn: sums, topsIn: tops, y: ofQueries(y), lse },
    params,
    grid: queries,
    consts,
  });
  for (const part of [sums, tops]) part.dispose();
}

const isFew = (k: KernelContext, { T, G, H, D }: AttentionExtents): boolean =>
  (T === 1 || T * (H / G) <= FEW_ROWS) && D <= MOST_ROOM_FEW && !hasEightLanes(k.profile);

/** Dispatches y and lse (which gets workspace when nobody asked for it). */
export function runAttention(
  k: KernelContext,
  io: Inputs & { readonly y: Tensor; readonly lse: Tensor | null },
  extents: AttentionExtents,
): void {
  const { q, k: key, v, y } = io;
  const lse = io.lse ?? k.temp([extents.B, extents.T, extents.H, 2]);
  const { marks, kind } = marksOf(k, io, extents);
  if (isFew(k, extents)) {
    for (const window of windowsOf(k, extents, [q, y], [key, v])) {
      runFew(k, window, { ...io, lse }, { marks, kind });
    }
    return;
  }
  const family = familyOf(k, extents);
  const [queries, keys, values] = operandsOf(k, family, extents, q, key, v);
  for (const window of windowsOf(k, extents, [queries, y], [keys, values])) {
    const { ofQueries, ofKeys } = window;
    runTiles(k, "forward", window, {
      family,
      vectors: { q: ofQueries(queries), k: ofKeys(keys), v: ofKeys(values) },
      others: { marks, lse },
      out: { y: ofQueries(y) },
      kind,
    });
  }
}

/** (lse, dy·y) of every query in one vector: what the backward kernels need of a row beside its own vectors. */
function runStatistics(k: KernelContext, { dy, y, lse }: BackwardInputs, extents: AttentionExtents): Tensor {
  const { B, T, H } = extents;
  const stats = k.temp([B, T, H, 4]);
  for (const window of windowsOf(k, extents, [dy, y], [])) {
    k.run("attention-tile/statistics", {
      bind: { dy: window.ofQueries(dy), yIn: window.ofQueries(y), lseIn: lse, stats },
      params: paramsOf(window, NO_MARKS),
      grid: Math.ceil((window.extents.B * window.extents.T * H) / THREADS),
    });
  }
  return stats;
}

export function runAttentionBackwardQ(
  k: KernelContext,
  io: BackwardInputs & { readonly dq: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, dq } = io;
  const { marks, kind } = marksOf(k, io, extents);
  const statsIn = runStatistics(k, io, extents);
  const family = familyOf(k, extents);
  const [gradients, queries, keys, values] = operandsOf(k, family, extents, dy, q, key, v);
  for (const window of windowsOf(k, extents, [gradients, queries, dq], [keys, values])) {
    const { ofQueries, ofKeys } = window;
    runTiles(k, "backward_q", window, {
      family,
      vectors: { dy: ofQueries(gradients), q: ofQueries(queries), k: ofKeys(keys), v: ofKeys(values) },
      others: { statsIn, marks },
      out: { dq: ofQueries(dq) },
      kind,
    });
  }
}

export function runAttentionBackwardKV(
  k: KernelContext,
  io: BackwardInputs & { readonly dk: Tensor; readonly dv: Tensor },
  extents: AttentionExtents,
): void {
  const { dy, q, k: key, v, dk, dv } = io;
  const { marks, kind } = marksOf(k, io, extents);
  const statsIn = runStatistics(k, io, extents);
  const family = familyOf(k, extents);
  const [gradients, queries, keys, values] = operandsOf(k, family, extents, dy, q, key, v);
  let current = -1; // the sequence whose gradients the windows so far have begun
  for (const window of windowsOf(k, extents, [gradients, queries], [keys, values, dk, dv])) {
    const { ofQueries, ofKeys, firstKey } = window;
    const totals = [ofKeys(dk), ofKeys(dv)];
    const isFirst = firstKey !== current;
    current = firstKey;
    const [dkPart, dvPart] = isFirst ? totals : totals.map(({ shape, dtype }) => k.temp(shape, dtype));
    runTiles(k, "backward_kv", window, {
      family,
      vectors: { dy: ofQueries(gradients), q: ofQueries(queries), k: ofKeys(keys), v: ofKeys(values) },
      others: { statsIn, marks },
      out: { dk: dkPart, dv: dvPart },
      kind,
    });
    if (isFirst) continue;
    for (const [i, x] of [dkPart, dvPart].entries()) {
      runAccumulate(k, totals[i], x);
      x.dispose();
    }
  }
}
