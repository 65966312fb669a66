/** Rows of a matrix within an array of doubles. */
interface Rows {
  readonly data: Float64Array;
  /** Elements from one row to the next. */
  readonly stride: number;
}

/**
 * c[i, j] -= Σ_k a[i, k] · b[j, k] for k < width, in a tile of 2 rows i and 4 columns j; `cAt`, `aAt` and `bAt` are the offsets
 * of c[0, 0], a[0, 0] and b[0, 0] of the tile. The eight sums stay in registers: calibration spends most of its time here.
 */
export function subtractTile(
  c: Rows,
  cAt: number,
  a: Rows,
  aAt: number,
  b: Rows,
  bAt: number,
  width: number,
): void {
  const x = a.data;
  const w = b.data;
  let i = aAt;
  let j = bAt;
  const { stride: s } = b;
  const next = a.stride;
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  let t0 = 0;
  let t1 = 0;
  let t2 = 0;
  let t3 = 0;
  for (const end = aAt + width; i < end; i++, j++) {
    const u = x[i];
    const v = x[i + next];
    const b0 = w[j];
    const b1 = w[j + s];
    const b2 = w[j + 2 * s];
    const b3 = w[j + 3 * s];
    s0 += u * b0;
    s1 += u * b1;
    s2 += u * b2;
    s3 += u * b3;
    t0 += v * b0;
    t1 += v * b1;
    t2 += v * b2;
    t3 += v * b3;
  }
  const y = c.data;
  y[cAt] -= s0;
  y[cAt + 1] -= s1;
  y[cAt + 2] -= s2;
  y[cAt + 3] -= s3;
  const below = cAt + c.stride;
  y[below] -= t0;
  y[below + 1] -= t1;
  y[below + 2] -= t2;
  y[below + 3] -= t3;
}
