/** The tile table: which kernel of a family runs, and with which block size, where shapes alone do not decide. */
import { type DeviceProfile, hasEightLanes } from "./profile.ts";

/** Thresholds between the kernels of a family. */
export interface Tiles {
  /** Rows of a block of matmul-rows, the matmul kernel for software drivers, from 9 rows on. */
  readonly rowsBlock: number;
  /** Up to this many rows of y, matmul-few runs instead of a blocked kernel. */
  readonly fewRows: number;
  /** matmul-block uses blocks of 128 x 128 if y has at least this many; else 64 x 64, which spread over more cores. */
  readonly minLargeBlocks: number;
  /**
   * Split-K is used while the blocks of all splits together stay within this number (of 128 x 128; four times as many of
   * 64 x 64); 0 disables it. Each block of 128 x 128 takes 64 KiB of workspace.
   */
  readonly splitKBlocks: number;
  /** From this many rows of y on, matmul with f16 or NF4 weights uses subgroup matrices. */
  readonly subgroupMatrixRows: number;
  /** From this many query rows per key head (tokens x query heads that share it) on, attention uses subgroup matrices; 0: never. */
  readonly subgroupMatrixQueries: number;
}

/** The best on the adapters that were measured (docs/benchmarks.md); a tuned cache overrides it. */
export const DEFAULT_TILES: Tiles = {
  rowsBlock: 16,
  fewRows: 4,
  minLargeBlocks: 128,
  splitKBlocks: 128,
  subgroupMatrixRows: 16,
  subgroupMatrixQueries: 0, // no GPU has measured it yet
};
/** A small matmul already fills the few cores of an integrated GPU, so split-K would cost more than it gains. */
const OTHER_TILES: Tiles = { ...DEFAULT_TILES, splitKBlocks: 0 };

/** The table of an adapter that was not tuned. */
export const defaultTiles = (profile: DeviceProfile): Tiles =>
  profile.adapterClass === "discrete" ? DEFAULT_TILES : OTHER_TILES;

/** The values that each entry may have: the tuner tries them all, and a cache file may hold no others. */
export const TILE_CANDIDATES: { readonly [K in keyof Tiles]: readonly number[] } = {
  rowsBlock: [8, 16],
  fewRows: [0, 1, 2, 4, 8],
  minLargeBlocks: [32, 64, 128, 256, 1024],
  splitKBlocks: [0, 32, 64, 128, 256],
  subgroupMatrixRows: [16, 32, 64, 128],
  subgroupMatrixQueries: [0, 16, 64, 256, 1024],
};

/** The table of a device: a tuned one, or the default. */
export const tilesOf = (profile: DeviceProfile): Tiles => profile.tiles ?? defaultTiles(profile);

/** The entries that affect such a device. */
export function tunableTiles(profile: DeviceProfile): (keyof Tiles)[] {
  if (hasEightLanes(profile)) return ["rowsBlock"];
  const matrices =
    profile.subgroupMatrices === true
      ? ["subgroupMatrixRows" as const, "subgroupMatrixQueries" as const]
      : [];
  return ["fewRows", "minLargeBlocks", "splitKBlocks", ...matrices];
}

/** Whether a value is a complete table whose entries are all among `TILE_CANDIDATES`. */
export function areTiles(value: unknown): value is Tiles {
  if (typeof value !== "object" || value === null) return false;
  const given = value as Record<string, unknown>;
  const names = Object.keys(TILE_CANDIDATES) as (keyof Tiles)[];
  return (
    Object.keys(given).length === names.length &&
    names.every((name) => TILE_CANDIDATES[name].includes(given[name] as number))
  );
}
