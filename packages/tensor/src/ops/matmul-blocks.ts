/**
 * How a window of a product becomes blocks of y on a GPU. Where those are fewer than keep the GPU busy and the sum is long,
 * the sum is cut into parts, which run as further workgroups of the same dispatch, each with a partial y of its own in
 * workspace; a second, small dispatch adds them (kernels/matmul-parts.wgsl).
 */
import type { KernelContext } from "../op.ts";
import type { DeviceProfile } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { tilesOf } from "../tiles.ts";

/** Which operand is stored transposed: nn: a[M,K]·b[K,N]; nt: a[M,K]·b[N,K]ᵀ; tn: a[K,M]ᵀ·b[K,N]. */
export type MatmulForm = "nn" | "nt" | "tn";

/** Parameters of one dispatch, as the kernels name them: positions and strides in elements. */
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

/** The tensors of one dispatch; `scales` where subgroup matrices want them. */
export interface Bindings {
  readonly a: Tensor;
  readonly b: Tensor;
  readonly y: Tensor;
  readonly bias: Tensor | null;
}

export const FORM_CODES: Readonly<Record<MatmulForm, number>> = { nt: 0, nn: 1, tn: 2 }; // of matmul-tile, -block and -matrix

/** Sides of a block of y: of matmul-block.wgsl, and of matmul-matrix.wgsl, which has the large ones alone. */
const [LARGE, SMALL] = [128, 64] as const;
/**
 * The least that a part sums over. A part writes 4 bytes a value of y and has them read again, which at 15 operations a byte
 * (an H200 in f32) takes as long as 60 values of its sum; on subgroup matrices four times as long.
 */
const LEAST_DEPTH = { block: 128, matrix: 256 } as const;
/** Parts begin where a step of either kernel over k does. */
const DEPTH_STEP = 32;
const PARTS_LANES = 64; // LANES of matmul-parts.wgsl

/** Blocks of y by their side, and parts of its sum. */
interface Cut {
  readonly side: typeof LARGE | typeof SMALL;
  readonly parts: number;
  /** What a part sums over; the last one less. */
  readonly depth: number;
}

const blocksOf = ({ batches, m, n }: Window, side: number): number =>
  batches * Math.ceil(m / side) * Math.ceil(n / side);

/** How many parts the sum may have: each deep enough, and all of their results in one binding. */
function mostParts(profile: DeviceProfile, { batches, m, n, k }: Window, leastDepth: number): number {
  return Math.min(Math.floor(k / leastDepth), Math.floor(profile.maxBindingBytes / (4 * batches * m * n)));
}

/** How many parts make as many blocks as the GPU wants; four small ones do as much as a large one. */
function wantedParts(profile: DeviceProfile, window: Window, side: number): number {
  return Math.floor((tilesOf(profile).splitKBlocks * (LARGE / side) ** 2) / blocksOf(window, side));
}

function cutInto(side: Cut["side"], wanted: number, k: number): Cut {
  if (wanted < 2) return { side, parts: 1, depth: k };
  const depth = Math.ceil(k / wanted / DEPTH_STEP) * DEPTH_STEP;
  return { side, parts: Math.ceil(k / depth), depth };
}

/** Large blocks where they, or parts of them, are enough for the GPU; small ones share less work better. */
function cutOf(profile: DeviceProfile, window: Window): Cut {
  const { m, n, k } = window;
  const { minLargeBlocks } = tilesOf(profile);
  const most = mostParts(profile, window, LEAST_DEPTH.block);
  if (m > SMALL) {
    if (blocksOf(window, LARGE) >= minLargeBlocks) return cutInto(LARGE, 1, k);
    const wanted = wantedParts(profile, window, LARGE);
    if (n > SMALL && wanted >= 2 && wanted <= most) return cutInto(LARGE, wanted, k);
  }
  return cutInto(SMALL, Math.min(wantedParts(profile, window, SMALL), most), k);
}

/** Runs `part` once: over y itself, or over workspace whose parts are then added to y with the bias and what y held. */
function runParts(
  k: KernelContext,
  { y, bias }: Pick<Bindings, "y" | "bias">,
  { batches, m, n, yAt, yRow }: Window,
  { parts, accumulate }: { parts: number; accumulate: boolean },
  run: (bind: { y: Tensor; bias: Tensor | null }, params: Record<string, number | boolean>) => void,
): void {
  const hasBias = bias !== null;
  if (parts === 1) {
    run({ y, bias }, { yAt, yRow, accumulate, hasBias });
    return;
  }
  using partial = k.temp([parts, batches * m, n]);
  run({ y: partial, bias: null }, { yAt: 0, yRow: n, accumulate: false, hasBias: false });
  const vectors = (batches * m * n) / 4;
  k.run("matmul-parts/main", {
    bind: { parts: partial, bias, y },
    params: { vectors, n, yAt, yRow, count: parts, accumulate, hasBias },
    grid: Math.ceil(vectors / PARTS_LANES),
  });
}

/** Dispatches a window whose extents are multiples of 4. */
export function runBlocks(
  k: KernelContext,
  { a, b, ...ends }: Bindings,
  window: Window,
  accumulate: boolean,
): void {
  const { form, batches, m, n, k: sum, aAt, aRow } = window;
  const { side, parts, depth } = cutOf(k.profile, window);
  runParts(k, ends, window, { parts, accumulate }, (bind, params) =>
    k.run("matmul-block/main", {
      bind: { a, b, ...bind },
      params: { batches, m, n, k: sum, aAt, aRow, ...params, parts, depth },
      grid: parts * blocksOf(window, side),
      consts: { FORM: FORM_CODES[form], BLOCK: side },
    }),
  );
}

/** Dispatches a window whose a is in f16, to be multiplied by `scales` row by row, to the subgroup matrices. */
export function runMatrix(
  k: KernelContext,
  { a, b, scales, ...ends }: Bindings & { readonly scales: Tensor | null },
  window: Window,
  accumulate: boolean,
): void {
  const { form, m, n, k: sum, aAt, aRow } = window;
  const wanted = Math.min(
    wantedParts(k.profile, window, LARGE),
    mostParts(k.profile, window, LEAST_DEPTH.matrix),
  );
  const { side, parts, depth } = cutInto(LARGE, wanted, sum);
  runParts(k, ends, window, { parts, accumulate }, (bind, params) =>
    k.run("matmul-matrix/main", {
      bind: { a, b, scales, ...bind },
      params: { m, n, k: sum, aAt, aRow, ...params, hasScales: scales !== null, parts, depth },
      grid: parts * blocksOf(window, side),
      consts: { FORM: FORM_CODES[form] },
    }),
  );
}
