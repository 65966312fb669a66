import { SidenetError } from "@sidenet/tensor";

/** Random access to the bytes of a file, a blob or memory: the only input of the parsers. */
export interface ByteSource {
  /** Its name in error messages: a path, a URL, or "memory". */
  readonly name: string;
  readonly sizeBytes: number;
  /** Exactly `length` bytes from `offset`; may be a view, so do not write to it. Throws `L-RANGE` outside the source. */
  read(offset: number, length: number): Promise<Uint8Array>;
  /** Closes the source; reading fails afterwards. */
  close(): Promise<void>;
}

/** Throws an error that begins with the source's name. */
export function refuse({ name }: Pick<ByteSource, "name">, code: string, text: string): never {
  throw new SidenetError(code, `${name}: ${text}`);
}

/** Throws `L-RANGE` unless [offset, offset + length) lies inside the source. */
export function checkRange(
  source: Pick<ByteSource, "name" | "sizeBytes">,
  offset: number,
  length: number,
): void {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
  if (!whole || offset < 0 || length < 0 || offset + length > source.sizeBytes) {
    const asked = `asked for ${length} bytes at ${offset}, but it has ${source.sizeBytes}`;
    refuse(source, "L-RANGE", `${asked}. Is the file truncated? Fetch it again.`);
  }
}

/** A source over bytes in memory; reads are views, not copies. */
export function memorySource(bytes: Uint8Array, name = "memory"): ByteSource {
  const self = { name, sizeBytes: bytes.byteLength };
  return {
    ...self,
    async read(offset, length) {
      checkRange(self, offset, length);
      return bytes.subarray(offset, offset + length);
    },
    async close() {},
  };
}
