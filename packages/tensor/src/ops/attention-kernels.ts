/** Which kernel computes attention on WebGPU, by the adapter and the extents. */
import { type DeviceProfile, hasEightLanes } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";

/** Extents of one call, named as in the op's signature: T queries and S keys per sequence, H query heads over G key heads. */
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

/** q[B,T,H,D], k[B,S,G,D], v[B,S,G,D], and what is masked: keyMask[B,S] and segments[B,S], or null. */
export interface AttentionInputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  readonly keyMask: Tensor | null;
  readonly segments: Tensor | null;
}

/** The kernels over tiles of queries and keys; each computes the forward pass and both gradients. */
export type TiledKernel = "attention-block" | "attention-matrix" | "attention-rows" | "attention-tile";

/** Values of the constant MAX_D of the kernels: few, since each is a pipeline of its own. */
const HEAD_CAPACITIES = [64, 128, 256, 512, 1024, 4096];
const MAX_D_ROWS = 256; // beyond it, attention-rows.wgsl would need too much private memory
const MAX_D_BLOCK = 256; // beyond it, the sums of attention-block.wgsl would not fit into registers
const MAX_D_FEW = 1024; // beyond it, attention-few.wgsl would need too much workgroup memory
/** Head sizes of attention-matrix.wgsl: at least the depth of a subgroup matrix, at most what its sums hold. */
const [MIN_D_MATRIX, MAX_D_MATRIX] = [16, 128];
/** Workgroup memory of attention-matrix.wgsl, rounded up to whole KiB. */
const MATRIX_WORKGROUP_BYTES = 48 * 1024;
/** Up to this many query rows per key head, attention-few.wgsl is faster than a tile of 32 rows that is mostly empty. */
const FEW_ROWS = 8;

/** The constant MAX_D of the kernels for heads of D. */
export const headCapacity = (D: number): number => HEAD_CAPACITIES.find((max) => D <= max) ?? D;

/** Query rows that share a key head. */
export const rowsPerKeyHead = ({ T, G, H }: AttentionExtents): number => T * (H / G);

/** Whether the forward pass runs attention-few.wgsl, which splits the keys instead of the queries: one token, or a few rows. */
export const isFewQueries = (profile: DeviceProfile, extents: AttentionExtents): boolean =>
  (extents.T === 1 || rowsPerKeyHead(extents) <= FEW_ROWS) &&
  extents.D <= MAX_D_FEW &&
  !hasEightLanes(profile);

/** Whether subgroup matrices compute it. They take operands of either type as f16, which the device's precision allows. */
function usesSubgroupMatrices(profile: DeviceProfile, extents: AttentionExtents): boolean {
  const { subgroupMatrixQueries } = tilesOf(profile);
  const { maxWorkgroupBytes = MATRIX_WORKGROUP_BYTES } = profile;
  const isEnough = subgroupMatrixQueries > 0 && rowsPerKeyHead(extents) >= subgroupMatrixQueries;
  return (
    profile.subgroupMatrices === true &&
    maxWorkgroupBytes >= MATRIX_WORKGROUP_BYTES &&
    isEnough &&
    extents.D >= MIN_D_MATRIX &&
    extents.D <= MAX_D_MATRIX
  );
}

/** The tiled kernel for these extents. All but attention-tile read heads as vec4s, so D has to be a multiple of 4. */
export function tiledKernel(profile: DeviceProfile, extents: AttentionExtents): TiledKernel {
  const { D } = extents;
  if (D % 4 > 0) return "attention-tile";
  if (hasEightLanes(profile)) return headCapacity(D) <= MAX_D_ROWS ? "attention-rows" : "attention-tile";
  if (usesSubgroupMatrices(profile, extents)) return "attention-matrix";
  return headCapacity(D) <= MAX_D_BLOCK ? "attention-block" : "attention-tile";
}

/** Whether the kernel for these extents reads heads as vec4s, given that D is a multiple of 4. */
export const readsVectors = (profile: DeviceProfile, extents: AttentionExtents): boolean =>
  !isFewQueries(profile, extents) && tiledKernel(profile, extents) !== "attention-tile";
