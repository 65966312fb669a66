import { type ByteSource, refuse } from "./byte-source.ts";

const WINDOW_BYTES = 1 << 20;
const text = new TextDecoder("utf-8", { ignoreBOM: true }); // a token may be a byte order mark

/**
 * Reads consecutive little-endian values through a buffered window of the source, so that a header of megabytes takes a few
 * reads. Call `await need(n)` first where `has(n)` is false; the getters then take from the window.
 */
export class GgufCursor {
  /** Offset in the source of the next byte. */
  position = 0;
  readonly #source: ByteSource;
  #window: DataView = new DataView(new ArrayBuffer(0));
  #windowStart = 0;

  constructor(source: ByteSource) {
    this.#source = source;
  }

  get remainingBytes(): number {
    return this.#source.sizeBytes - this.position;
  }

  has(bytes: number): boolean {
    return this.position + bytes <= this.#windowStart + this.#window.byteLength;
  }

  /** Makes `bytes` bytes available. Throws `L-GGUF-TRUNCATED`, naming `what`, if the source ends before. */
  async need(bytes: number, what: string): Promise<void> {
    if (this.has(bytes)) return;
    this.claim(bytes, what);
    const length = Math.min(Math.max(bytes, WINDOW_BYTES), this.remainingBytes);
    const read = await this.#source.read(this.position, length);
    this.#window = new DataView(read.buffer, read.byteOffset, read.byteLength);
    this.#windowStart = this.position;
  }

  /** Throws `L-GGUF-TRUNCATED` unless that many bytes are left, for checks of counts before they are used. */
  claim(bytes: number, what: string): void {
    if (!(bytes <= this.remainingBytes)) {
      refuse(
        this.#source,
        "L-GGUF-TRUNCATED",
        `${what} needs ${bytes} bytes at ${this.position}, but ${this.remainingBytes} are left. ` +
          "The file is cut short or damaged: fetch it again.",
      );
    }
  }

  #take(bytes: number): number {
    const at = this.position - this.#windowStart;
    this.position += bytes;
    return at;
  }

  u8 = (): number => this.#window.getUint8(this.#take(1));
  i8 = (): number => this.#window.getInt8(this.#take(1));
  u16 = (): number => this.#window.getUint16(this.#take(2), true);
  i16 = (): number => this.#window.getInt16(this.#take(2), true);
  u32 = (): number => this.#window.getUint32(this.#take(4), true);
  i32 = (): number => this.#window.getInt32(this.#take(4), true);
  f32 = (): number => this.#window.getFloat32(this.#take(4), true);
  f64 = (): number => this.#window.getFloat64(this.#take(8), true);
  u64 = (): number | bigint => narrow(this.#window.getBigUint64(this.#take(8), true));
  i64 = (): number | bigint => narrow(this.#window.getBigInt64(this.#take(8), true));

  utf8(bytes: number): string {
    const at = this.#take(bytes);
    return text.decode(new Uint8Array(this.#window.buffer, this.#window.byteOffset + at, bytes));
  }
}

/** The value as a number if that is exact, else as a bigint. */
function narrow(value: bigint): number | bigint {
  const number = Number(value);
  return Number.isSafeInteger(number) ? number : value;
}
