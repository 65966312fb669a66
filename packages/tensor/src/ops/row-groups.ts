/** How norm.wgsl, softmax.wgsl and cross-entropy.wgsl divide rows between threads and workgroups. */

import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Shape } from "../shape.ts";
import type { TestRandom } from "../test-random.ts";

/** Constants of such a kernel, and the extents of a dispatch. */
interface RowGroups {
  readonly consts: {
    /** Threads of a workgroup, which share a row. */
    readonly LANES: number;
    /** Vectors that each thread has in flight or in registers at once. */
    readonly KEPT: number;
    /** Elements of a vector. */
    readonly WIDTH: 4 | 1;
    /** Whether a reduction uses no subgroups (0), the only one of the workgroup (1), or several (2). */
    readonly SUBGROUPS: 0 | 1 | 2;
  };
  /** Vectors of a row. */
  readonly vectors: number;
  /** rowGroups: rows of a workgroup, one after the other; partGroups: workgroups that share a row. */
  readonly each: number;
  /** Workgroups. */
  readonly grid: number;
}

/** The rows to divide. */
interface RowExtents {
  readonly rows: number;
  /** Elements of a row, or of a contiguous block of it. */
  readonly columns: number;
  /** Elements of all blocks of a row. */
  readonly allColumns?: number;
  /** Operands read per row, for instance 2 for x and dy. */
  readonly operands?: number;
}

/** Limit on the threads of a workgroup that every adapter allows. */
const MAX_LANES = 256;
const MIN_LANES = 32;
const KEPT = 4;
/**
 * KEPT of one operand whose rows do not fit `MAX_LANES` threads with `KEPT` each. A single workgroup on a core then has 32 KiB in
 * flight, as much as two operands have with `KEPT`.
 */
const KEPT_WIDE = 8;
/** Beyond this many workgroups, each takes several rows: a few times what a large GPU runs at once. */
const MANY_GROUPS = { gpu: 8192, eightLanes: 64 };
const MAX_EACH = 8;
/** Up to this many workgroups, several share a row where nothing is reduced. */
const ENOUGH_GROUPS = 2048;
/** Vectors of a row that a workgroup sums over all rows: the bytes of a memory transaction, or half of it. */
const COLUMNS = 8;

function constsOf(
  profile: DeviceProfile,
  vectors: number,
  WIDTH: 4 | 1,
  operands: number,
): RowGroups["consts"] {
  // On a software driver two consecutive loads per lane help, four do not.
  if (hasEightLanes(profile)) return { LANES: 8, KEPT: operands > 1 ? 1 : 2, WIDTH, SUBGROUPS: 1 };
  const kept = operands === 1 && vectors > MAX_LANES * KEPT ? KEPT_WIDE : KEPT;
  let lanes = MIN_LANES;
  while (lanes < MAX_LANES && lanes * kept < vectors) lanes *= 2;
  return { LANES: lanes, KEPT: kept, WIDTH, SUBGROUPS: profile.subgroups ? 2 : 0 };
}

const widthOf = ({ columns, allColumns = columns }: RowExtents): 4 | 1 =>
  columns % 4 === 0 && allColumns % 4 === 0 ? 4 : 1;

/** For a kernel that reduces along rows: a workgroup takes whole rows. */
export function rowGroups(profile: DeviceProfile, extents: RowExtents): RowGroups {
  const { rows, columns, operands = 1 } = extents;
  const WIDTH = widthOf(extents);
  const vectors = columns / WIDTH;
  const groups = hasEightLanes(profile) ? MANY_GROUPS.eightLanes : MANY_GROUPS.gpu;
  const each = Math.max(1, Math.min(MAX_EACH, Math.floor(rows / groups)));
  return { consts: constsOf(profile, vectors, WIDTH, operands), vectors, each, grid: Math.ceil(rows / each) };
}

/** For a kernel that maps elements with statistics of their row: `each` workgroups share a row. */
export function partGroups(profile: DeviceProfile, extents: RowExtents): RowGroups {
  const { rows, columns } = extents;
  const WIDTH = widthOf(extents);
  const vectors = columns / WIDTH;
  const consts = constsOf(profile, vectors, WIDTH, 2);
  const maxSharing = Math.ceil(vectors / (consts.LANES * consts.KEPT));
  const each = hasEightLanes(profile)
    ? 1
    : Math.max(1, Math.min(maxSharing, Math.ceil(ENOUGH_GROUPS / rows)));
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
  return { consts: { LANES: MAX_LANES, KEPT, WIDTH, SUBGROUPS }, vectors, grid };
}

/** Draws short rows or a few wide ones, half of them multiples of 4, which divide differently. */
export function drawRows(
  pick: TestRandom,
  minColumns = 1,
  maxRows = 40,
  maxAxes = 2,
): { N: Shape; C: number } {
  const short = () => ({ N: pick.shape(maxRows, maxAxes), C: pick.int(minColumns, 300) });
  const vectors = () => ({ N: pick.shape(maxRows, maxAxes), C: 4 * pick.int(1, 75) });
  const wide = () => ({
    N: [pick.int(1, 3)],
    C: pick.oneOf([() => 4 * pick.int(75, 600), () => 4 * pick.int(600, 2500), () => pick.int(300, 2500)])(),
  });
  return pick.oneOf([short, vectors, short, wide])(); // the last choice at full scale
}
