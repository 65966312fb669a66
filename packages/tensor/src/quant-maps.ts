/** The values of 4-bit and 8-bit codes. */

/** NF4's levels. Source: QLoRA (2305.14314), appendix E; literals, since recomputing them is not exact. */
export const NF4_LEVELS: Readonly<Float32Array> = Float32Array.of(
  -1.0,
  -0.6961928009986877,
  -0.5250730514526367,
  -0.39491748809814453,
  -0.28444138169288635,
  -0.18477343022823334,
  -0.09105003625154495,
  0.0,
  0.07958029955625534,
  0.16093020141124725,
  0.24611230194568634,
  0.33791524171829224,
  0.44070982933044434,
  0.5626170039176941,
  0.7229568362236023,
  1.0,
);

const EXPONENTS = 7;

/**
 * The dynamic map of bitsandbytes: 256 ascending values, dense near 0. For each of 7 powers of ten it has the midpoints of equal
 * intervals of 0.1 .. 1, as many as the remaining bits allow, and then 0 and 1; the signed map has half as many and their negatives.
 * Entry 127 is 0 with a sign, entry 0 without. All arithmetic is float32. Source: Dettmers et al. 2022 (2110.02861).
 */
export function dynamicMap(signed: boolean): Float32Array {
  const { fround } = Math;
  const low = fround(0.1);
  const values: number[] = [0, 1];
  for (let i = 0; i < EXPONENTS; i++) {
    const parts = signed ? 2 ** i : 2 ** (i + 1);
    const step = fround((1 - low) / parts);
    const edge = (j: number) =>
      j < Math.floor((parts + 1) / 2) ? fround(low + step * j) : fround(1 - step * (parts - j));
    for (let j = 0; j < parts; j++) {
      const middle = fround(fround(edge(j) + edge(j + 1)) / 2);
      const value = fround(fround(10 ** (i - EXPONENTS + 1)) * middle);
      values.push(value);
      if (signed) values.push(-value);
    }
  }
  return Float32Array.from(values).sort();
}

/** Position of the map of 8-bit scales in an NF4 table: after the levels. */
export const NF4_MAP_AT = 16;
/** Position of their offset: the last entry of a table with a map. */
export const NF4_OFFSET_AT = NF4_MAP_AT + 256;

/**
 * The table that decodes NF4: 16 levels and, for 8-bit scales (double quantization), the map of 256 and the offset. The
 * defaults are those of bitsandbytes; a checkpoint brings its own.
 */
export function nf4Table(
  options: { double?: boolean; levels?: ArrayLike<number>; map?: ArrayLike<number>; offset?: number } = {},
): Float32Array {
  const { double = true, levels = NF4_LEVELS, offset = 0 } = options;
  const table = new Float32Array(double ? NF4_OFFSET_AT + 1 : NF4_MAP_AT);
  table.set(levels);
  if (!double) return table;
  table.set(options.map ?? dynamicMap(true), NF4_MAP_AT);
  table[NF4_OFFSET_AT] = offset;
  return table;
}
