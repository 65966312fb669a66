/** How kernels over rows share them out: norm.wgsl, softmax.wgsl, cross-entropy.wgsl. */
import { type DeviceProfile, hasEightLanes } from "../profile.ts";

/** What such a kernel is made for, and what a dispatch over `rows` rows gives it. */
export interface RowGroups {
  readonly consts: {
    /** Threads of a workgroup, which share a row. */
    readonly LANES: number;
    /** Vectors that each has on the way, or in registers, at once. */
    readonly KEPT: number;
    /** Elements of a vector. */
    readonly WIDTH: 4 | 1;
    /** Subgroups of a workgroup: none, one or several. */
    readonly SUBGROUPS: 0 | 1 | 2;
  };
  /** Of a row. */
  readonly vectors: number;
  /** Rows that a workgroup takes, one after the other. */
  readonly each: number;
  /** Workgroups. */
  readonly grid: number;
}

/** Threads of a workgroup at most: what every adapter allows. */
const MOST_LANES = 256;
const LEAST_LANES = 32;
const KEPT = 4;
/** Of rows that would not fit `MOST_LANES` threads with `KEPT` each: a workgroup alone on a core then keeps 32 KiB on the way. */
const KEPT_WIDE = 8;
/** Workgroups past which one takes several rows: what a large GPU has room for, and some rounds of that. */
const MANY_GROUPS = { gpu: 8192, eightLanes: 64 };
const MOST_EACH = 8;

/** Rows of `columns` elements, of which there are `rows`, at hand of a kernel that reads rows. */
export function rowGroups(profile: DeviceProfile, rows: number, columns: number): RowGroups {
  const WIDTH = columns % 4 === 0 ? 4 : 1;
  const vectors = columns / WIDTH;
  const eight = hasEightLanes(profile);
  const groups = eight ? MANY_GROUPS.eightLanes : MANY_GROUPS.gpu;
  const each = Math.max(1, Math.min(MOST_EACH, Math.floor(rows / groups)));
  const shared = { vectors, each, grid: Math.ceil(rows / each) };
  if (eight) return { consts: { LANES: 8, KEPT: 1, WIDTH, SUBGROUPS: 1 }, ...shared };
  const kept = vectors > MOST_LANES * KEPT ? KEPT_WIDE : KEPT;
  let lanes = LEAST_LANES;
  while (lanes < MOST_LANES && lanes * kept < vectors) lanes *= 2;
  return { consts: { LANES: lanes, KEPT: kept, WIDTH, SUBGROUPS: profile.subgroups ? 2 : 0 }, ...shared };
}

/** Vectors of a row that a workgroup sums over all rows: as many bytes as memory hands out at a time, or half of that. */
const COLUMNS = 8;

/** The same for a kernel that sums columns: LANES / COLUMNS threads share a column. */
export function columnGroups(profile: DeviceProfile, columns: number): Omit<RowGroups, "each"> {
  const WIDTH = columns % 4 === 0 ? 4 : 1;
  const vectors = columns / WIDTH;
  const shared = { vectors, grid: Math.ceil(vectors / COLUMNS) };
  if (hasEightLanes(profile)) return { consts: { LANES: COLUMNS, KEPT: 1, WIDTH, SUBGROUPS: 1 }, ...shared };
  const SUBGROUPS = profile.subgroups ? 2 : 0;
  return { consts: { LANES: MOST_LANES, KEPT, WIDTH, SUBGROUPS }, ...shared };
}
