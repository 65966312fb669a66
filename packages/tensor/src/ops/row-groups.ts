/** How kernels over rows share them out: norm.wgsl, softmax.wgsl, cross-entropy.wgsl. */

import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Shape } from "../shape.ts";
import type { TestRandom } from "../test-random.ts";

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
  /** Rows that a workgroup takes, one after the other, or workgroups that share a row. */
  readonly each: number;
  /** Workgroups. */
  readonly grid: number;
}

/** What there is to do. */
export interface RowExtents {
  readonly rows: number;
  /** Of a row, or of a block of it: they lie side by side. */
  readonly columns: number;
  /** Of all blocks of a row. */
  readonly allColumns?: number;
  /** Rows that are read side by side, x and dy for instance. */
  readonly operands?: number;
}

/** Threads of a workgroup at most: what every adapter allows. */
const MOST_LANES = 256;
const LEAST_LANES = 32;
const KEPT = 4;
/**
 * Of one operand whose rows would not fit `MOST_LANES` threads with `KEPT` each: a workgroup alone on a core then has 32 KiB on
 * the way, which two operands have with `KEPT`.
 */
const KEPT_WIDE = 8;
/** Workgroups past which one takes several rows: what a large GPU has room for, and some rounds of that. */
const MANY_GROUPS = { gpu: 8192, eightLanes: 64 };
const MOST_EACH = 8;
/** Workgroups up to which those of a row are more than one, where nothing is summed. */
const ENOUGH_GROUPS = 2048;
/** Vectors of a row that a workgroup sums over all rows: as many bytes as memory hands out at a time, or half of that. */
const COLUMNS = 8;

function constsOf(
  profile: DeviceProfile,
  vectors: number,
  WIDTH: 4 | 1,
  operands: number,
): RowGroups["consts"] {
  // Eight lanes that run one after the other gain by two loads in a row, not by four that wait for each other.
  if (hasEightLanes(profile)) return { LANES: 8, KEPT: operands > 1 ? 1 : 2, WIDTH, SUBGROUPS: 1 };
  const kept = operands === 1 && vectors > MOST_LANES * KEPT ? KEPT_WIDE : KEPT;
  let lanes = LEAST_LANES;
  while (lanes < MOST_LANES && lanes * kept < vectors) lanes *= 2;
  return { LANES: lanes, KEPT: kept, WIDTH, SUBGROUPS: profile.subgroups ? 2 : 0 };
}

const widthOf = ({ columns, allColumns = columns }: RowExtents): 4 | 1 =>
  columns % 4 === 0 && allColumns % 4 === 0 ? 4 : 1;

/** For a kernel that sums along rows: a workgroup has whole rows. */
export function rowGroups(profile: DeviceProfile, extents: RowExtents): RowGroups {
  const { rows, columns, operands = 1 } = extents;
  const WIDTH = widthOf(extents);
  const vectors = columns / WIDTH;
  const groups = hasEightLanes(profile) ? MANY_GROUPS.eightLanes : MANY_GROUPS.gpu;
  const each = Math.max(1, Math.min(MOST_EACH, Math.floor(rows / groups)));
  return { consts: constsOf(profile, vectors, WIDTH, operands), vectors, each, grid: Math.ceil(rows / each) };
}

/** For a kernel that takes elements by themselves and something of their row: `each` workgroups share a row. */
export function partGroups(profile: DeviceProfile, extents: RowExtents): RowGroups {
  const { rows, columns } = extents;
  const WIDTH = widthOf(extents);
  const vectors = columns / WIDTH;
  const consts = constsOf(profile, vectors, WIDTH, 2);
  const most = Math.ceil(vectors / (consts.LANES * consts.KEPT));
  const each = hasEightLanes(profile) ? 1 : Math.max(1, Math.min(most, Math.ceil(ENOUGH_GROUPS / rows)));
  return { consts, vectors, each, grid: rows * each };
}

/** For a kernel that sums over rows: LANES / COLUMNS threads share a column of vectors. */
export function columnGroups(profile: DeviceProfile, columns: number): Omit<RowGroups, "each"> {
  const WIDTH = columns % 4 === 0 ? 4 : 1;
  const vectors = columns / WIDTH;
  const grid = Math.ceil(vectors / COLUMNS);
  if (hasEightLanes(profile)) {
    return { consts: { LANES: COLUMNS, KEPT: 1, WIDTH, SUBGROUPS: 1 }, vectors, grid };
  }
  const SUBGROUPS = profile.subgroups ? 2 : 0;
  return { consts: { LANES: MOST_LANES, KEPT, WIDTH, SUBGROUPS }, vectors, grid };
}

/** Short rows or a few wide ones, multiples of 4 as often as not: each has groups of its own. */
export function drawRows(pick: TestRandom, least = 1, mostRows = 40, mostAxes = 2): { N: Shape; C: number } {
  const short = () => ({ N: pick.shape(mostRows, mostAxes), C: pick.int(least, 300) });
  const vectors = () => ({ N: pick.shape(mostRows, mostAxes), C: 4 * pick.int(1, 75) });
  const wide = () => ({
    N: [pick.int(1, 3)],
    C: pick.oneOf([() => 4 * pick.int(75, 600), () => 4 * pick.int(600, 2500), () => pick.int(300, 2500)])(),
  });
  return pick.oneOf([short, vectors, short, wide])(); // the last one where nothing is scaled down
}
