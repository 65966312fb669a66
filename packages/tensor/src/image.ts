/** The layout of images: copies of tensors as textures, which a software driver reads faster than buffers. */

/** Texels of a tensor in a row of its image; kernels that read one have the same constant. */
export const IMAGE_WIDTH = 2048;

/**
 * Texels from one row of an image to the next. It is not a power of two: rows of a tensor whose stride is a multiple of
 * 4 KiB would fall on the same lines of a cache.
 */
export const IMAGE_PITCH = IMAGE_WIDTH + 12;

const TEXEL_BYTES = 16;

/** Bytes of a tensor that stand in one row of its image. */
export const IMAGE_ROW_BYTES = IMAGE_WIDTH * TEXEL_BYTES;

/** Bytes of a whole row, padding included. */
export const IMAGE_PITCH_BYTES = IMAGE_PITCH * TEXEL_BYTES;

/** Bytes of the image of a tensor: its rows are rounded up by a quarter at most, so that a pool can reuse similar images. */
export function imageBytes(tensorBytes: number): number {
  const rows = Math.ceil(Math.max(tensorBytes, 1) / IMAGE_ROW_BYTES);
  const step = 2 ** Math.max(0, Math.floor(Math.log2(rows)) - 2);
  return Math.ceil(rows / step) * step * IMAGE_PITCH_BYTES;
}
