/**
 * The ops of attention. Each packs by key head the operands that will stream (attention-pack.ts), then runs a kernel whose tasks
 * are blocks of panels of those that stay: queries for y and dq, keys for dk and dv.
 */

import { rangesOf } from "../../op.ts";
import { type AttentionAttrs, extentsOf } from "../../ops/attention.ts";
import type { AttentionExtents, AttentionInputs } from "../../ops/attention-kernels.ts";
import type { Tensor } from "../../tensor.ts";
import type { WasmContext, WasmOp } from "../context.ts";
import { SCRATCH_BYTES } from "../layout.ts";
import { PITCH, WORDS } from "./attention-panel.ts";
import { overRows } from "./f16-windows.ts";
import { EDGE_BYTES, PANEL_COLS } from "./library.ts";
import { PACK_HEADS, STREAM } from "./tasks.ts";
import { SIMPLE_PER_NS } from "./work.ts";

const FLOPS_PER_NS = 40;
/** Bytes of packed operands that exist at a time; if one batch row has more, those of one batch row. */
const PACKED_BYTES = 2 ** 24;
/** A task reads the streaming operands once, so it takes a panel for each so many bytes of them, up to MAX_PANELS. */
const STREAMED_BYTES = 2 ** 19;
const MAX_PANELS = 8;
/** Up to so many queries of a key head, each reads keys and values in place (attention-few.ts). */
const FEW_ROWS = 4;

/** The layout of a thread's scratch for a task of `blockPanels` panels (`PLACES`), or null if they do not fit. */
function placesOf(k: WasmContext, D: number, blockPanels: number): Record<string, number> | null {
  const operand = PANEL_COLS * D;
  const scores = PANEL_COLS * STREAM;
  const sums = PANEL_COLS * k.panelRows * Math.ceil(D / k.panelRows);
  const places: Record<string, number> = {};
  let end = EDGE_BYTES;
  const place = (sizes: Readonly<Record<string, number>>) => {
    for (const [name, size] of Object.entries(sizes)) {
      places[name] = end;
      end += Math.ceil(size / 16) * 64;
    }
  };
  place({ scoresAt: scores, otherScoresAt: scores, rowAt: D, oneAt: 1 });
  const first = end;
  place({ panelAt: operand, otherPanelAt: operand, sumsAt: sums, otherSumsAt: sums, wordsAt: WORDS.count });
  places.panelBytes = end - first;
  places.blockPanels = blockPanels;
  return first + blockPanels * places.panelBytes <= SCRATCH_BYTES ? places : null;
}

/** Keys, or queries: G key heads of `group` heads each (1 for keys), `length` positions, D elements. */
interface Side {
  readonly G: number;
  readonly group: number;
  readonly length: number;
  readonly D: number;
}

const keysOf = ({ G, S, D }: AttentionExtents): Side => ({ G, group: 1, length: S, D });
const queriesOf = ({ G, H, T, D }: AttentionExtents): Side => ({ G, group: H / G, length: T, D });

/** Arguments and tasks of a kernel of which a task is PACK_HEADS rows of one key head. */
function headRows(B: number, { G, group, length, D }: Side) {
  const parts = Math.ceil((length * group) / PACK_HEADS);
  return {
    args: { s: length, g: G, group, d: D, parts },
    split: { tasks: B * G * parts, work: (B * G * group * length * D) / SIMPLE_PER_NS },
  };
}

/** An operand that streams, and how it is to be packed: by rows, by columns (as its transpose) or both. */
interface Streamed {
  readonly src: Tensor;
  readonly rows?: true;
  readonly columns?: true;
}

/** Packs two operands by key head, the rows of the first times `scale`; what was not asked for is null. */
function packHeads(k: WasmContext, B: number, side: Side, [first, second]: readonly Streamed[], scale = 1) {
  const rows = side.length * side.group;
  const padded = (count: number) => Math.ceil(count / k.panelRows) * k.panelRows;
  const temp = (size: number) => k.temp([B * side.G, size]);
  const ofRows = ({ rows: asked }: Streamed) => (asked ? temp(padded(rows) * side.D) : null);
  const ofColumns = ({ columns }: Streamed) => (columns ? temp((rows | PITCH) * padded(side.D)) : null);
  const packed = {
    firstRows: ofRows(first),
    firstColumns: ofColumns(first),
    secondRows: ofRows(second),
    secondColumns: ofColumns(second),
  };
  const { args, split } = headRows(B, side);
  const panels = Object.values(packed).filter((tensor) => tensor !== null).length;
  const tasks = { tasks: 2 * split.tasks, work: panels * split.work };
  k.run(
    "packHeads",
    { first: first.src, second: second.src, ...packed, scale, ...args, each: split.tasks },
    tasks,
  );
  return packed;
}

/**
 * Arguments that all passes share, and the tasks of a pass of `matmuls` matrix multiplications. Each of those takes 2 operations
 * for each visible pair and element, and reads its streaming operand once in each task.
 */
function shared(
  k: WasmContext,
  extents: AttentionExtents,
  { stays, streams, matmuls }: { stays: Side; streams: Side; matmuls: number },
) {
  const { B, T, S, G, H, D, queryOffset: offset, scale } = extents;
  const bytes = 4 * matmuls * streams.length * streams.group * D;
  const wanted = Math.max(1, Math.min(MAX_PANELS, Math.round(bytes / STREAMED_BYTES)));
  const places = placesOf(k, D, wanted) ?? placesOf(k, D, 1)!;
  const blocks = Math.ceil((stays.length * stays.group) / PANEL_COLS / places.blockPanels);
  const sizes = { t: T, s: S, g: G, group: H / G, d: D, offset, blocks };
  return {
    args: { ...sizes, scale, ...places },
    split: { tasks: B * G * blocks, work: (matmuls * B * H * T * S * D) / FLOPS_PER_NS },
  };
}

type ForwardIo = AttentionInputs & { readonly y: Tensor; readonly lse: Tensor | null };

/** The forward pass of few queries, without packing. */
function runFew(
  k: WasmContext,
  { q, k: key, v, keyMask: mask, segments, y, lse }: ForwardIo,
  extents: AttentionExtents,
): void {
  const { B, T, S, G, H, D, queryOffset: offset, scale } = extents;
  const sizes = { t: T, s: S, g: G, group: H / G, d: D, offset };
  const args = { q, k: key, v, mask, segments, y, lse, ...sizes, scale, ...placesOf(k, D, 1) };
  k.run("attentionFew", args, { tasks: B * T * H, work: (B * T * H * S * D) / SIMPLE_PER_NS });
}

const isFew = ({ T, H, G }: AttentionExtents): boolean => (T * H) / G <= FEW_ROWS;

function runForward(k: WasmContext, io: ForwardIo, extents: AttentionExtents): void {
  if (isFew(extents)) {
    runFew(k, io, extents);
    return;
  }
  const { q, k: key, v, keyMask: mask, segments, y, lse } = io;
  const [ofKeys, ofQueries] = [keysOf(extents), queriesOf(extents)];
  const both = [
    { src: key, rows: true },
    { src: v, columns: true },
  ] as const;
  const packed = packHeads(k, extents.B, ofKeys, both, extents.scale);
  const [keys, values] = [packed.firstRows, packed.secondColumns];
  const sides = { stays: ofQueries, streams: ofKeys, matmuls: 2 };
  const { args, split } = shared(k, extents, sides);
  k.run("attention", { q, keys, values, mask, segments, y, lse, ...args }, split);
}

/** An op over batch rows: with f16 operands over as many at a time as fit a window in f32, of those as many as are packed at a time. */
const overBatches =
  <Io extends object>(
    outputNames: readonly string[],
    packedFloatsOfRow: (extents: AttentionExtents) => number,
    run: (k: WasmContext, io: Io, extents: AttentionExtents) => void,
  ): WasmOp =>
  (k, io: Readonly<Record<string, Tensor | null>>, dims, attrs: AttentionAttrs) => {
    const extents = extentsOf(dims, attrs);
    const { B, D } = extents;
    if (placesOf(k, D, 1) === null) return false;
    const side = (isOutput: boolean) =>
      Object.fromEntries(Object.entries(io).filter(([name]) => outputNames.includes(name) === isOutput));
    const packedBytes = 4 * Math.max(1, packedFloatsOfRow(extents)); // of a batch row
    const maxRows = Math.max(1, Math.floor(PACKED_BYTES / packedBytes));
    overRows(k, B, { inputs: side(false), outputs: side(true) }, (window, { count }) => {
      for (const range of rangesOf(count, maxRows)) {
        k.scope(() => {
          const rows = Object.entries(window).map(([name, t]) => [name, t && k.rows(t, count, range)]);
          run(k, Object.fromEntries(rows), { ...extents, B: range.count });
        });
      }
    });
    return true;
  };

export const attention = overBatches(
  ["y", "lse"],
  (extents) => (isFew(extents) ? 0 : 2 * extents.S * extents.G * extents.D),
  runForward,
);

type BackwardIo = AttentionInputs & { readonly dy: Tensor; readonly y: Tensor; readonly lse: Tensor };

function queryShifts(
  k: WasmContext,
  io: Record<"dy" | "y" | "lse", Tensor>,
  B: number,
  side: Side,
): { shifts: Tensor; heads: number } {
  const heads = B * side.G;
  const shifts = k.temp([3, heads, side.length * side.group]);
  const { args, split } = headRows(B, side);
  k.run("queryShifts", { ...io, shifts, heads, ...args }, split);
  return { shifts, heads };
}

type BackwardQIo = BackwardIo & { readonly dq: Tensor };

function runBackwardQ(k: WasmContext, io: BackwardQIo, extents: AttentionExtents): void {
  const { dy, q, k: key, v, y, lse, keyMask: mask, segments, dq } = io;
  const [ofKeys, ofQueries] = [keysOf(extents), queriesOf(extents)];
  const both = [
    { src: key, rows: true, columns: true },
    { src: v, rows: true },
  ] as const;
  const packed = packHeads(k, extents.B, ofKeys, both, extents.scale);
  const operands = {
    dy,
    q,
    dq,
    mask,
    segments,
    keyRows: packed.firstRows,
    keyColumns: packed.firstColumns,
    valueRows: packed.secondRows,
    ...queryShifts(k, { dy, y, lse }, extents.B, ofQueries),
  };
  const sides = { stays: ofQueries, streams: ofKeys, matmuls: 3 };
  const { args, split } = shared(k, extents, sides);
  k.run("attentionBackwardQ", { ...operands, ...args }, split);
}

export const attentionBackwardQ = overBatches(["dq"], ({ S, G, D }) => 3 * S * G * D, runBackwardQ);

type BackwardKVIo = BackwardIo & { readonly dk: Tensor; readonly dv: Tensor };

function runBackwardKV(k: WasmContext, io: BackwardKVIo, extents: AttentionExtents): void {
  const { dy, q, k: key, v, y, lse, keyMask: mask, segments, dk, dv } = io;
  const ofQueries = queriesOf(extents);
  const both = [
    { src: q, rows: true, columns: true },
    { src: dy, rows: true, columns: true },
  ] as const;
  const packed = packHeads(k, extents.B, ofQueries, both);
  const operands = {
    k: key,
    v,
    dk,
    dv,
    mask,
    segments,
    queryRows: packed.firstRows,
    queryColumns: packed.firstColumns,
    dyRows: packed.secondRows,
    dyColumns: packed.secondColumns,
    ...queryShifts(k, { dy, y, lse }, extents.B, ofQueries),
  };
  const sides = { stays: keysOf(extents), streams: ofQueries, matmuls: 4 };
  const { args, split } = shared(k, extents, sides);
  k.run("attentionBackwardKV", { ...operands, ...args }, split);
}

export const attentionBackwardKV = overBatches(["dk", "dv"], ({ T, H, D }) => 4 * T * H * D, runBackwardKV);
