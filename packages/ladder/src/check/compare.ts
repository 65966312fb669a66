/** Errors of results against golden values, and tolerances. */

/** One compared quantity of a case. `error` is Infinity where a value is not finite. */
export interface Comparison {
  readonly tensor: string;
  readonly error: number;
  readonly tolerance: number;
}

/** 2-norm, in double. */
export function norm(values: ArrayLike<number>): number {
  let sum = 0;
  for (let i = 0; i < values.length; i++) sum += values[i] * values[i];
  return Math.sqrt(sum);
}

/** ‖out - ref‖; Infinity if `out` has another length or a value that is not finite. */
export function distance(out: ArrayLike<number>, ref: ArrayLike<number>): number {
  if (out.length !== ref.length) return Number.POSITIVE_INFINITY;
  let sum = 0;
  for (let i = 0; i < ref.length; i++) sum += (out[i] - ref[i]) ** 2;
  return Number.isFinite(sum) ? Math.sqrt(sum) : Number.POSITIVE_INFINITY;
}

/** ‖out - ref‖ / ‖ref‖ over the whole tensor; ‖out‖ itself where the reference is zero (golden/README.md). */
export function relativeError(out: ArrayLike<number>, ref: ArrayLike<number>): number {
  const size = norm(ref);
  return size < 1e-30 ? distance(out, ref) : distance(out, ref) / size;
}

/** The largest relative error of single numbers: losses and norms by step. */
export function worstRelative(out: ArrayLike<number>, ref: ArrayLike<number>): number {
  if (out.length !== ref.length) return Number.POSITIVE_INFINITY;
  let worst = 0;
  for (let i = 0; i < ref.length; i++) worst = Math.max(worst, relativeError([out[i]], [ref[i]]));
  return worst;
}

/** 0 if the values are equal, else Infinity. */
export function exactError(out: ArrayLike<number>, ref: ArrayLike<number>): number {
  const same = out.length === ref.length && Array.from(out).every((value, i) => value === ref[i]);
  return same ? 0 : Number.POSITIVE_INFINITY;
}

/** The error as a share of its tolerance; above 1 it is too large. An expected value that is not finite makes the error NaN. */
export function share({ error, tolerance }: Comparison): number {
  if (error === 0) return 0;
  return tolerance > 0 && !Number.isNaN(error) ? error / tolerance : Number.POSITIVE_INFINITY;
}

/** The comparison that uses most of its tolerance. */
export function worstOf(comparisons: readonly Comparison[]): Comparison | null {
  return comparisons.reduce<Comparison | null>(
    (worst, next) => (worst === null || share(next) > share(worst) ? next : worst),
    null,
  );
}
