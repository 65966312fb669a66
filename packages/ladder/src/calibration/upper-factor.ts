import { subtractTile } from "./subtract-tile.ts";

/** Columns that are finished together. */
const PANEL = 64;
/** Rows of a tile that stays in a processor's nearest cache while others meet it. */
const TILE = 32;

/** Takes what the finished columns [start, end) account for off the columns before them. */
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
 * R, upper triangular, of a symmetric positive definite h = R · Rᵀ, in place of the upper half of h [n, n], n a multiple of 4: from
 * the last column to the first, n³ / 6 multiplications. Returns null when it is done, else the column at which h is not positive definite to the
 * precision of doubles. What is below the diagonal means nothing afterwards.
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
