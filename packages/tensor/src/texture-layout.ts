/** The layout of textures that hold a copy of a tensor: a software driver reads them faster than buffers. */

/** Texels of a tensor in one row of its texture; kernels that read textures repeat this constant. */
export const TEXTURE_WIDTH = 2048;

/**
 * Texels from the start of one texture row to the next. Not a power of two: tensor rows whose stride is a multiple of 4 KiB
 * would otherwise compete for the same cache sets.
 */
export const TEXTURE_PITCH = TEXTURE_WIDTH + 12;

const TEXEL_BYTES = 16;

/** Bytes of the tensor in one texture row. */
export const TEXTURE_ROW_BYTES = TEXTURE_WIDTH * TEXEL_BYTES;

/** Bytes of one texture row, padding included. */
export const TEXTURE_PITCH_BYTES = TEXTURE_PITCH * TEXEL_BYTES;

/** Bytes of the texture for a tensor. The row count is rounded up by a quarter at most, so that the pool can reuse textures. */
export function textureBytes(tensorBytes: number): number {
  const rows = Math.ceil(Math.max(tensorBytes, 1) / TEXTURE_ROW_BYTES);
  const step = 2 ** Math.max(0, Math.floor(Math.log2(rows)) - 2);
  return Math.ceil(rows / step) * step * TEXTURE_PITCH_BYTES;
}
