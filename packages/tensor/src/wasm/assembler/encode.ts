/** Encoding of numbers, names and vectors in WebAssembly's binary format. */

/** Unsigned LEB128. */
export function unsigned(value: number): number[] {
  const bytes: number[] = [];
  let rest = value;
  do {
    const low = rest % 128;
    rest = Math.floor(rest / 128);
    bytes.push(rest > 0 ? low | 0x80 : low);
  } while (rest > 0);
  return bytes;
}

/** Signed LEB128 of a 32-bit integer; addresses from 2^31 on count as negative. */
export function signed(value: number): number[] {
  const bytes: number[] = [];
  let rest = value | 0;
  for (;;) {
    const low = rest & 0x7f;
    rest >>= 7;
    const isLast = (rest === 0 && (low & 0x40) === 0) || (rest === -1 && (low & 0x40) !== 0);
    bytes.push(isLast ? low : low | 0x80);
    if (isLast) return bytes;
  }
}

/** The four bytes of a float32. */
export const float32 = (value: number): number[] => [
  ...new Uint8Array(new Float32Array([value]).buffer), // WebAssembly is little-endian, as are all hosts that run it
];

/** Bytes with their length before them. */
export const sized = (bytes: readonly number[]): number[] => [...unsigned(bytes.length), ...bytes];

/** Items with their count before them. */
export const vector = (items: readonly (readonly number[])[]): number[] => [
  ...unsigned(items.length),
  ...items.flat(),
];

export const text = (name: string): number[] => sized([...new TextEncoder().encode(name)]);
