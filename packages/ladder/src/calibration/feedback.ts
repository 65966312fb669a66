/** Rounding of a weight's columns one after the other, each error answered by the columns that follow (GPTQ). */
import { NF4_BLOCKS } from "@sidenet/tensor";
import { type BlockScales, levelCode, levelValue } from "./nf4-grid.ts";
import { subtractTile } from "./products.ts";
import { upperFactor } from "./upper-factor.ts";

const { block: BLOCK } = NF4_BLOCKS;

/** Columns whose feedback is gathered from all earlier ones at once. */
const PANEL = 64;
/** Rows that are worked on together. */
const ROWS = 128;

/** What the columns of a weight [out, in] do to its output: H = R · Rᵀ, ready for feedback. */
export interface Feedback {
  /** [in] */
  readonly columns: number;
  /** Columns, and zeros up to a multiple of 4. */
  readonly stride: number;
  /** [stride, stride]: row j holds R[k, j] / R[j, j] of the columns k before j. */
  readonly shares: Float64Array;
  /** R[j, j]² */
  readonly weights: Float64Array;
}

/**
 * Of H [n, n], symmetric, whose upper half is read; `damping` · the mean of its diagonal is added to it. Null where that is not enough
 * for H to be positive definite, which finite data does not bring about.
 */
export function feedbackOf(h: Float32Array | Float64Array, n: number, damping: number): Feedback | null {
  const stride = Math.ceil(n / 4) * 4;
  let trace = 0;
  for (let i = 0; i < n; i++) trace += h[i * n + i];
  const extra = trace > 0 ? (damping * trace) / n : 1; // nothing came in: all columns count alike
  const r = new Float64Array(stride * stride);
  for (let i = 0; i < stride; i++) {
    for (let j = i; j < n; j++) r[i * stride + j] = h[i * n + j];
    r[i * stride + i] = i < n ? h[i * n + i] + extra : 1;
  }
  if (upperFactor(r, stride) !== null) return null;
  const weights = Float64Array.from({ length: n }, (_, j) => r[j * stride + j] ** 2);
  for (let j = 0; j < n; j++) {
    for (let k = 0; k < j; k++) r[j * stride + k] = r[k * stride + j] / r[j * stride + j];
  }
  return { columns: n, stride, shares: r, weights };
}

/** A weight's codes, and Σ (x · (q - w)ᵀ)² over the inputs that H was made of, damping included. */
export interface Rounded {
  readonly codes: Uint8Array;
  readonly error: number;
}

/** Some rows of a weight on their way. */
interface Strip {
  readonly rows: number;
  /** What each column is to be rounded to once the errors before it are known, [rows, stride]. */
  readonly targets: Float64Array;
  /** Rounded values less the weight's own, [rows, stride]. */
  readonly errors: Float64Array;
}

/** Takes the errors of all columns before `start` to the targets of [start, end). */
function carryOver({ rows, targets, errors }: Strip, f: Feedback, start: number, end: number): void {
  if (start === 0) return;
  const [t, e, s] = [targets, errors, f.shares].map((data) => ({ data, stride: f.stride }));
  for (let j = start; j < end; j += 4) {
    for (let i = 0; i < rows; i += 2)
      subtractTile(t, i * f.stride + j, e, i * f.stride, s, j * f.stride, start);
  }
}

/** A panel's columns [start, end) of one row, the first of them element `at` of the weight. */
interface Piece {
  readonly row: number;
  readonly start: number;
  readonly end: number;
  readonly at: number;
}

/** What a piece is rounded with, and to. */
interface Trial {
  readonly scales: Float64Array;
  readonly codes: Uint8Array;
  readonly errors: Float64Array;
}

const newTrial = (): Trial => ({
  scales: new Float64Array(PANEL),
  codes: new Uint8Array(PANEL),
  errors: new Float64Array(PANEL),
});

/** Rounds a piece with the trial's scales. Returns what that costs, or something larger than `most` as soon as it is. */
function tryPiece(
  w: Float32Array,
  { targets }: Strip,
  { stride, shares, weights }: Feedback,
  { row, start, end, at }: Piece,
  { scales, codes, errors }: Trial,
  most: number,
): number {
  let cost = 0;
  for (let j = 0; j < end - start && cost <= most; j++) {
    let target = targets[row * stride + start + j];
    const share = (start + j) * stride + start;
    for (let k = 0; k < j; k++) target -= errors[k] * shares[share + k];
    codes[j] = levelCode(target, scales[j]);
    const value = levelValue(codes[j], scales[j]);
    errors[j] = value - w[at + j];
    cost += weights[start + j] * (value - target) ** 2;
  }
  return cost;
}

/** Scales that are tried for a block, as shares of its largest magnitude; the likeliest first. */
const SHARES = (globalThis as any).CAL_FAC ?? [0.9, 1, 0.85, 0.95, 0.8];

/**
 * Rounds a weight w [out, in] to NF4, column after column: each to the level that best answers what the errors before it did to the
 * output, given that those after it will do the same. A block within a row takes the scale with which that goes best.
 */
export function roundWithFeedback(w: Float32Array, scales: BlockScales, f: Feedback): Rounded {
  const { columns: n, stride } = f;
  const codes = new Uint8Array(w.length);
  const total = w.length / n;
  let error = 0;
  const strip = { targets: new Float64Array(ROWS * stride), errors: new Float64Array(ROWS * stride) };
  let [trial, best] = [newTrial(), newTrial()];
  const aligned = n % BLOCK === 0;
  for (let first = 0; first < total; first += ROWS) {
    const rows = Math.min(ROWS, total - first);
    for (let i = 0; i < rows; i++)
      strip.targets.set(w.subarray((first + i) * n, (first + i + 1) * n), i * stride);
    for (let start = 0; start < n; start += PANEL) {
      const end = Math.min(start + PANEL, n);
      carryOver({ ...strip, rows }, f, start, end);
      for (let row = 0; row < rows; row++) {
        const at = (first + row) * n + start;
        const piece = { row, start, end, at };
        let least = Number.POSITIVE_INFINITY;
        if (!aligned) {
          for (let j = 0; j < end - start; j++) best.scales[j] = scales.values[Math.floor((at + j) / BLOCK)];
          least = tryPiece(w, { ...strip, rows }, f, piece, best, least);
        } else {
          const b = at / BLOCK;
          let chosen = 0;
          const largest = scales.wanted[b];
          for (const share of (globalThis as any).CAL?.fac ?? SHARES) {
            const code = scales.codeOf(b, largest * share);
            trial.scales.fill(scales.valueOf(b, code));
            const cost = tryPiece(w, { ...strip, rows }, f, piece, trial, least);
            if (cost >= least) continue;
            least = cost;
            chosen = code;
            [trial, best] = [best, trial];
          }
          scales.choose(b, chosen);
        }
        codes.set(best.codes.subarray(0, end - start), at);
        strip.errors.set(best.errors.subarray(0, end - start), row * stride + start);
        error += least;
      }
    }
  }
  return { codes, error };
}
