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

/** A source whose `read` is called for bytes within its size alone; for others the source throws `L-RANGE`. */
export function byteSource(
  name: string,
  sizeBytes: number,
  read: ByteSource["read"],
  close: ByteSource["close"] = async () => {},
): ByteSource {
  return {
    name,
    sizeBytes,
    async read(offset, length) {
      const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
      if (!whole || offset < 0 || length < 0 || offset + length > sizeBytes) {
        const asked = `asked for ${length} bytes at ${offset}, but it has ${sizeBytes}`;
        refuse({ name }, "L-RANGE", `${asked}. Is the file truncated? Fetch it again.`);
      }
      return read(offset, length);
    },
    close,
  };
}

/** A source over bytes in memory; reads are views, not copies. */
export const memorySource = (bytes: Uint8Array, name = "memory"): ByteSource =>
  byteSource(name, bytes.byteLength, async (offset, length) => bytes.subarray(offset, offset + length));
