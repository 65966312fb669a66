/**
 * Dispatches one window of a matmul to matmul-block.wgsl or matmul-matrix.wgsl. Where y has fewer blocks than keep the GPU
 * busy and k is long, split-K divides the sum over k between workgroups of the same dispatch. Each split writes a partial y
 * to workspace, and a second dispatch (matmul-split-k.wgsl) adds the partials.
 */
import type { KernelContext } from "../op.ts";
import type { DeviceProfile } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";

/** Which operand is stored transposed: nn: a[M,K]·b[K,N]; nt: a[M,K]·b[N,K]ᵀ; tn: a[K,M]ᵀ·b[K,N]. */
export type MatmulForm = "nn" | "nt" | "tn";

/** Extents, offsets and row strides of one dispatch, in elements and named as in the kernels. */
export interface Window {
  readonly form: MatmulForm;
  readonly batches: number;
  readonly m: number;
  readonly n: number;
  readonly k: number;
  readonly aAt: number;
  readonly aRow: number;
  readonly yAt: number;
  readonly yRow: number;
}

/** The tensors of one dispatch. */
export interface Bindings {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly y: Tensor;
  readonly bias: Tensor | null;
}

/** The constant FORM of matmul-tile, -block and -matrix. */
export const FORM_CODES: Readonly<Record<MatmulForm, number>> = { nt: 0, nn: 1, tn: 2 };

/** Sides of a block of y. matmul-block.wgsl has both sizes, matmul-matrix.wgsl only the large one. */
const [LARGE, SMALL] = [128, 64] as const;
/** Workgroup memory of matmul-block.wgsl with large blocks, more than WebGPU guarantees; with small ones, half of that. */
const LARGE_WORKGROUP_BYTES = 16896;
/**
 * Minimum k of a split. A split writes 4 bytes per value of y and reads them back, which at 15 operations per byte (an H200
 * in f32) takes as long as summing over 60 of k; on subgroup matrices, as long as four times that.
 */
const MIN_SPLIT_DEPTH = { block: 128, matrix: 256 } as const;
/** Splits begin at multiples of the k step of both kernels. */
const DEPTH_STEP = 32;
const SPLIT_K_LANES = 64; // LANES of matmul-split-k.wgsl

/** How a window is divided: the side of its blocks and the splits of k. */
interface Tiling {
  readonly side: typeof LARGE | typeof SMALL;
  readonly splits: number;
  /** The part of k that a split sums over; the last split may have less. */
  readonly splitDepth: number;
}

const blocksOf = ({ batches, m, n }: Window, side: number): number =>
  batches * Math.ceil(m / side) * Math.ceil(n / side);

/** The largest number of splits that are deep enough and whose partial results fit one binding together. */
function maxSplits(profile: DeviceProfile, { batches, m, n, k }: Window, minDepth: number): number {
  return Math.min(Math.floor(k / minDepth), Math.floor(profile.maxBindingBytes / (4 * batches * m * n)));
}

/** The number of splits that gives as many blocks as the GPU wants; four small blocks count as one large one. */
function wantedSplits(profile: DeviceProfile, window: Window, side: number): number {
  return Math.floor((tilesOf(profile).splitKBlocks * (LARGE / side) ** 2) / blocksOf(window, side));
}

function tilingWith(side: Tiling["side"], splits: number, k: number): Tiling {
  if (splits < 2) return { side, splits: 1, splitDepth: k };
  const splitDepth = Math.ceil(k / splits / DEPTH_STEP) * DEPTH_STEP;
  return { side, splits: Math.ceil(k / splitDepth), splitDepth };
}

/** Large blocks if they fit the GPU and there are enough of them for it, with split-K or without; otherwise small blocks. */
function tilingOf(profile: DeviceProfile, window: Window): Tiling {
  const { m, n, k } = window;
  const { minLargeBlocks } = tilesOf(profile);
  const { maxWorkgroupBytes = LARGE_WORKGROUP_BYTES } = profile;
  const max = maxSplits(profile, window, MIN_SPLIT_DEPTH.block);
  if (m > SMALL && maxWorkgroupBytes >= LARGE_WORKGROUP_BYTES) {
    if (blocksOf(window, LARGE) >= minLargeBlocks) return tilingWith(LARGE, 1, k);
    const wanted = wantedSplits(profile, window, LARGE);
    if (n > SMALL && wanted >= 2 && wanted <= max) return tilingWith(LARGE, wanted, k);
  }
  return tilingWith(SMALL, Math.min(wantedSplits(profile, window, SMALL), max), k);
}

/**
 * Calls `run` once: with y itself if there is one split; otherwise with workspace for the partial results, which are then
 * added to y together with the bias and, when accumulating, the previous y.
 */
function withSplits(
  k: KernelContext,
  { y, bias }: Pick<Bindings, "y" | "bias">,
  { batches, m, n, yAt, yRow }: Window,
  { splits, accumulate }: { splits: number; accumulate: boolean },
  run: (bind: { y: Tensor; bias: Tensor | null }, params: Record<string, number | boolean>) => void,
): void {
  const hasBias = bias !== null;
  if (splits === 1) {
    run({ y, bias }, { yAt, yRow, accumulate, hasBias });
    return;
  }
  using partials = k.temp([splits, batches * m, n]);
  run({ y: partials, bias: null }, { yAt: 0, yRow: n, accumulate: false, hasBias: false });
  const vectors = (batches * m * n) / 4;
  k.run("matmul-split-k/main", {
    bind: { partials, bias, y },
    params: { vectors, n, yAt, yRow, splits, accumulate, hasBias },
    grid: Math.ceil(vectors / SPLIT_K_LANES),
  });
}

/** Dispatches matmul-block.wgsl for a window whose extents are multiples of 4. */
export function runBlocks(
  k: KernelContext,
  { a, b, y, bias }: Bindings,
  window: Window,
  accumulate: boolean,
): void {
  const { form, batches, m, n, k: depth, aAt, aRow } = window;
  const { side, splits, splitDepth } = tilingOf(k.profile, window);
  withSplits(k, { y, bias }, window, { splits, accumulate }, (bind, params) =>
    k.run("matmul-block/main", {
      bind: { a, b, ...bind },
      params: { batches, m, n, k: depth, aAt, aRow, ...params, splits, splitDepth },
      grid: splits * blocksOf(window, side),
      consts: { FORM: FORM_CODES[form], BLOCK: side },
    }),
  );
}

/** Dispatches matmul-matrix.wgsl (subgroup matrices) for a window with a in f16; row m of the result is multiplied by scales[m]. */
export function runMatrix(
  k: KernelContext,
  { a, b, y, bias }: Bindings,
  scales: Tensor | null,
  window: Window,
  accumulate: boolean,
): void {
  const { form, m, n, k: depth, aAt, aRow } = window;
  const wanted = wantedSplits(k.profile, window, LARGE);
  const max = maxSplits(k.profile, window, MIN_SPLIT_DEPTH.matrix);
  const { side, splits, splitDepth } = tilingWith(LARGE, Math.min(wanted, max), depth);
  withSplits(k, { y, bias }, window, { splits, accumulate }, (bind, params) =>
    k.run("matmul-matrix/main", {
      bind: { a, b, scales, ...bind },
      params: { m, n, k: depth, aAt, aRow, ...params, hasScales: scales !== null, splits, splitDepth },
      grid: splits * blocksOf(window, side),
      consts: { FORM: FORM_CODES[form] },
    }),
  );
}
