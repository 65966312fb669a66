import { subtractTile } from "./subtract-tile.ts";

/** Number of columns that are factored together. */
const PANEL = 64;
/** Rows of a tile that stays in the L1 cache. */
const TILE = 32;

/** Subtracts the product of the finished columns [start, end) from the columns before them. */
function updateBefore(h: Float64Array, n: number, start: number, end: number): void {
  const width = end - start;
  const panel = { data: new Float64Array(start * width), stride: width };
  for (let i = 0; i < start; i++) panel.data.set(h.subarray(i * n + start, i * n + end), i * width);
  const rest = { data: h, stride: n };
  for (let tile = 0; tile < start; tile += TILE) {
    const last = Math.min(tile + TILE, start);
    for (let i = 0; i < last; i += 2) {
      for (let j = tile; j < last; j += 4)
        subtractTile(rest, i * n + j, panel, i * width, panel, j * width, width);
    }
  }
}

/**
 * Factors a symmetric positive definite h [n, n] = R · Rᵀ, R upper triangular, n a multiple of 4: R overwrites the upper half of
 * h, and the lower half is undefined afterwards. It goes from the last column to the first, with n³ / 6 multiplications.
 * Returns null, or the column at which h is not positive definite in double precision.
 */
export function upperFactor(h: Float64Array, n: number): number | null {
  for (let end = n; end > 0; end -= PANEL) {
    const start = Math.max(0, end - PANEL);
    for (let i = end - 1; i >= 0; i--) {
      for (let j = end - 1; j >= Math.max(start, i); j--) {
        let rest = h[i * n + j];
        for (let k = j + 1; k < end; k++) rest -= h[i * n + k] * h[j * n + k];
        if (i !== j) h[i * n + j] = rest / h[j * n + j];
        else if (rest > 0) h[i * n + j] = Math.sqrt(rest);
        else return i;
      }
    }
    updateBefore(h, n, start, end);
  }
  return null;
}
