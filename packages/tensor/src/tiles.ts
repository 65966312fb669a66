/** The tile table: which kernel of a family runs, and with which block size, where shapes alone do not decide. */
import { type DeviceProfile, hasEightLanes, type Tiles } from "./profile.ts";

/** The best on the adapters that were measured (docs/benchmarks.md); a tuned cache overrides it. */
export const DEFAULT_TILES: Tiles = {
  rowsBlock: 16,
  fewRows: 4,
  minLargeBlocks: 128,
  splitKBlocks: 128,
  subgroupMatrixRows: 16,
  subgroupMatrixQueries: 1024,
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
  splitKBlocks: [0, 32, 64, 128, 256, 512],
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
