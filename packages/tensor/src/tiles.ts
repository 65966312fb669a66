/** The tile table: which kernel of a family, and which of its blocks, where shapes alone do not decide. */
import { type DeviceProfile, hasEightLanes } from "./profile.ts";

/** Where one kernel of a family gives way to another, by shapes. */
export interface Tiles {
  /** Rows of a block of matmul-rows, the product of software drivers, from 9 rows on. */
  readonly rowsBlock: number;
  /** Rows of y up to which one dispatch row per row of y (matmul-few) is taken in the place of blocks. */
  readonly fewRows: number;
  /** Blocks of 128 x 128 from which on matmul-block takes those; with fewer, 64 x 64 share the work better. */
  readonly enoughBlocks: number;
  /**
   * Blocks of 128 x 128, or four times as many of 64 x 64, up to which products with fewer cut a long sum into parts; 0: none
   * do. Each such block takes 64 KiB of workspace.
   */
  readonly splitBlocks: number;
  /** Rows of y from which on products with weights in f16 or NF4 go to matrix units. */
  readonly matrixRows: number;
  /** Queries, of all heads that share a key head, from which on attention goes to matrix units; 0: it never does. */
  readonly matrixQueries: number;
}

/** What was best on the adapters that were measured (docs/benchmarks.md); a tuned cache may say otherwise. */
export const DEFAULT_TILES: Tiles = {
  rowsBlock: 16,
  fewRows: 4,
  enoughBlocks: 128,
  splitBlocks: 128,
  matrixRows: 16,
  matrixQueries: 0, // no GPU has measured it yet
};
/** A small product keeps the few cores of such a GPU busy, so cutting its sums into parts costs more than it brings. */
const OTHER_TILES: Tiles = { ...DEFAULT_TILES, splitBlocks: 0 };

/** The table of an adapter that nobody has tuned. */
export const defaultTiles = (profile: DeviceProfile): Tiles =>
  profile.adapterClass === "discrete" ? DEFAULT_TILES : OTHER_TILES;

/** Every value that may stand in the table: what a tuner tries and a cache may hold. */
export const TILE_CANDIDATES: { readonly [K in keyof Tiles]: readonly number[] } = {
  rowsBlock: [8, 16],
  fewRows: [0, 1, 2, 4, 8],
  enoughBlocks: [32, 64, 128, 256, 1024],
  splitBlocks: [0, 32, 64, 128, 256],
  matrixRows: [16, 32, 64, 128],
  matrixQueries: [0, 16, 64, 256, 1024],
};

/** The table of a device: a tuned one, or the default. */
export const tilesOf = (profile: DeviceProfile): Tiles => profile.tiles ?? defaultTiles(profile);

/** The entries that decide anything on such a device. */
export function tunableTiles(profile: DeviceProfile): (keyof Tiles)[] {
  if (hasEightLanes(profile)) return ["rowsBlock"];
  const units = profile.matrixUnits === true ? ["matrixRows" as const, "matrixQueries" as const] : [];
  return ["fewRows", "enoughBlocks", "splitBlocks", ...units];
}

/** Whether this is a whole table of candidates. */
export function areTiles(value: unknown): value is Tiles {
  if (typeof value !== "object" || value === null) return false;
  const given = value as Record<string, unknown>;
  const names = Object.keys(TILE_CANDIDATES) as (keyof Tiles)[];
  return (
    Object.keys(given).length === names.length &&
    names.every((name) => TILE_CANDIDATES[name].includes(given[name] as number))
  );
}
