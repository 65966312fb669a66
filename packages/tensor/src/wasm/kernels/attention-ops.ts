/** Attention: operands packed by head, then blocks of queries (or of keys) on all threads. */
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { SCRATCH_BYTES } from "../layout.ts";
import { EDGE_BYTES } from "./library.ts";
import { PACK_STEPS, STREAM } from "./tasks.ts";
import { isF32, SIMPLE_PER_NS } from "./work.ts";

/** Panels of rows in a block: two of the second cache's operands, and scores of 48 x 256. */
const BLOCK_PANELS = 8;
const FLOPS_PER_NS = 25;
/** Packed operands of so many bytes exist at a time, or of one batch row. */
const PACKED_BYTES = 2 ** 24;

interface Extents {
  readonly B: number;
  readonly T: number;
  readonly S: number;
  readonly G: number;
  readonly H: number;
  readonly D: number;
}
interface Attrs {
  readonly queryOffset: number;
  readonly scale: number | null;
}
interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly keyMask: Tensor | null;
  readonly segments: Tensor | null;
}

/** Where a block's parts lie in a thread's scratch, or null where they do not fit. */
function placesOf(k: WasmContext, D: number): Record<string, number> | null {
  const rows = BLOCK_PANELS * k.panelRows;
  const sums = rows * 8 * Math.ceil(D / 8);
  const sizes = {
    ...{ leftAt: rows * D, otherLeftAt: rows * D, scoresAt: rows * STREAM, otherScoresAt: rows * STREAM },
    ...{ weightsAt: rows * STREAM, sumsAt: sums, otherSumsAt: sums, statsAt: 2 * rows },
  };
  let end = EDGE_BYTES;
  const places: Record<string, number> = {};
  for (const [name, size] of Object.entries(sizes)) {
    places[name] = end;
    end += Math.ceil(size / 16) * 64;
  }
  return end <= SCRATCH_BYTES ? places : null;
}

type Side = { readonly heads: number; readonly length: number };

function packHeads(
  k: WasmContext,
  kernel: "packHeadRows" | "packHeadColumns",
  src: Tensor,
  B: number,
  D: number,
  side: Side,
): Tensor {
  const { heads, length: s } = side;
  const dst = k.temp(
    kernel === "packHeadRows" ? [B * heads, Math.ceil(s / 8) * 8, D] : [B * heads, Math.ceil(D / 8), s, 8],
  );
  const parts = Math.ceil(s / PACK_STEPS);
  const split = { tasks: B * heads * parts, work: (B * heads * s * D) / SIMPLE_PER_NS };
  k.run(kernel, { src, dst, heads, s, d: D, parts }, split);
  return dst;
}

function visibleBits(k: WasmContext, keyMask: Tensor | null, B: number, S: number): Tensor {
  const bits = k.temp([B, S]);
  k.run("visibleBits", { mask: keyMask, bits, n: B * S }, { tasks: 1, work: B * S });
  return bits;
}

/** Ranges of batch rows whose packed operands fit the workspace. */
function* batchesOf(
  { B }: Extents,
  floatsPerRow: number,
): IterableIterator<{ start: number; count: number }> {
  const most = Math.max(1, Math.floor(PACKED_BYTES / (4 * Math.max(1, floatsPerRow))));
  for (let start = 0; start < B; start += most) yield { start, count: Math.min(most, B - start) };
}

const rowsOf = <K extends string>(
  k: WasmContext,
  io: Readonly<Record<K, Tensor | null>>,
  B: number,
  range: { start: number; count: number },
): Record<K, Tensor> =>
  Object.fromEntries(
    Object.entries<Tensor | null>(io).map(([name, tensor]) => [name, tensor && k.rows(tensor, B, range)]),
  ) as Record<K, Tensor>;

/** Arguments that all passes share, and the tasks of one with this many flops for each visible pair and element. */
function shared(
  k: WasmContext,
  { T, S, G, H, D }: Extents,
  B: number,
  { queryOffset, scale }: Attrs,
  rows: "queries" | "keys",
  flops: number,
) {
  const blockRows = BLOCK_PANELS * k.panelRows;
  const blocks = Math.ceil((rows === "queries" ? T : S) / blockRows);
  return {
    args: {
      ...{ batches: B, t: T, s: S, h: H, g: G, d: D, offset: queryOffset },
      ...{ scale: scale ?? 1 / Math.sqrt(D), blocks, blockRows },
    },
    split: {
      tasks: B * blocks * (rows === "queries" ? H : G),
      work: (flops * B * H * T * S * D) / FLOPS_PER_NS / 2,
    },
  };
}

const takes = (io: Readonly<Record<string, Tensor | null>>, { D }: Extents): boolean => {
  const { keyMask: _mask, segments: _segments, ...floats } = io;
  return isF32(floats) && D > 0;
};

export const attention: WasmOp = (k, io: Inputs & { y: Tensor; lse: Tensor | null }, dims, attrs: Attrs) => {
  const extents = dims as unknown as Extents;
  const { B, T, S, G, D } = extents;
  const places = placesOf(k, D);
  if (places === null || !takes({ ...io }, extents)) return false;
  const side = { heads: G, length: S };
  for (const range of batchesOf(extents, 2 * S * G * D)) {
    const { count } = range;
    const { q, k: key, v, keyMask, segments, y, lse } = rowsOf(k, { ...io }, B, range);
    const keys = packHeads(k, "packHeadRows", key, count, D, side);
    const values = packHeads(k, "packHeadColumns", v, count, D, side);
    const visible = visibleBits(k, keyMask, count, S);
    const { args, split } = shared(k, extents, count, attrs, "queries", 4);
    if (T > 0) k.run("attention", { q, keys, values, visible, segments, y, lse, ...args, ...places }, split);
  }
  return true;
};

type BackwardIo = Inputs & { readonly dy: Tensor; readonly y: Tensor; readonly lse: Tensor };

function queryShifts(
  k: WasmContext,
  io: Record<"dy" | "y" | "lse", Tensor>,
  B: number,
  { T, H, D }: Extents,
): Tensor {
  const shifts = k.temp([3, B * H, T]);
  const { dy, y, lse } = io;
  const args = { dy, y, lse, shifts, heads: H, t: T, d: D, all: B * H };
  k.run("queryShifts", args, { tasks: B * H, work: (B * H * T * D) / SIMPLE_PER_NS });
  return shifts;
}

export const attentionBackwardQ: WasmOp = (k, io: BackwardIo & { dq: Tensor }, dims, attrs: Attrs) => {
  const extents = dims as unknown as Extents;
  const { B, S, G, D } = extents;
  const places = placesOf(k, D);
  if (places === null || !takes({ ...io }, extents)) return false;
  const side = { heads: G, length: S };
  for (const range of batchesOf(extents, 3 * S * G * D)) {
    const { count } = range;
    const { dy, q, k: key, v, y, lse, keyMask, segments, dq } = rowsOf(k, { ...io }, B, range);
    const keyRows = packHeads(k, "packHeadRows", key, count, D, side);
    const keyColumns = packHeads(k, "packHeadColumns", key, count, D, side);
    const valueRows = packHeads(k, "packHeadRows", v, count, D, side);
    const operands = {
      dy,
      q,
      keyRows,
      keyColumns,
      valueRows,
      visible: visibleBits(k, keyMask, count, S),
      segments,
    };
    const shifts = queryShifts(k, { dy, y, lse }, count, extents);
    const { args, split } = shared(k, extents, count, attrs, "queries", 6);
    k.run("attentionBackwardQ", { ...operands, shifts, dq, ...args, ...places }, split);
  }
  return true;
};

export const attentionBackwardKV: WasmOp = (
  k,
  io: BackwardIo & { dk: Tensor; dv: Tensor },
  dims,
  attrs: Attrs,
) => {
  const extents = dims as unknown as Extents;
  const { B, T, S, H, D } = extents;
  const places = placesOf(k, D);
  if (places === null || !takes({ ...io }, extents)) return false;
  const side = { heads: H, length: T };
  for (const range of batchesOf(extents, 4 * T * H * D)) {
    const { count } = range;
    const { dy, q, k: key, v, y, lse, keyMask, segments, dk, dv } = rowsOf(k, { ...io }, B, range);
    const queryRows = packHeads(k, "packHeadRows", q, count, D, side);
    const queryColumns = packHeads(k, "packHeadColumns", q, count, D, side);
    const dyRows = packHeads(k, "packHeadRows", dy, count, D, side);
    const dyColumns = packHeads(k, "packHeadColumns", dy, count, D, side);
    const visible = visibleBits(k, keyMask, count, S);
    const shifts = queryShifts(k, { dy, y, lse }, count, extents);
    const operands = { k: key, v, queryRows, queryColumns, dyRows, dyColumns, visible, segments, shifts };
    const { args, split } = shared(k, extents, count, attrs, "keys", 8);
    k.run("attentionBackwardKV", { ...operands, dk, dv, ...args, ...places }, split);
  }
  return true;
};
