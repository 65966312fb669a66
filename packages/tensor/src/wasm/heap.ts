/** A free range of linear memory. */
interface Block {
  readonly address: number;
  readonly sizeBytes: number;
}

/** Blocks start at multiples of a cache line, so that threads which write different tensors never share a line. */
const LINE = 64;

/**
 * An allocator of addresses in a memory that grows and never shrinks. Freed blocks are reused by exact size, since the shapes of
 * training steps repeat. Before the memory grows, adjacent free blocks are joined and the best fit among them is taken.
 */
export class Heap {
  readonly #grow: (endBytes: number) => boolean;
  readonly #bySize = new Map<number, number[]>();
  /** Joined free blocks, in order of address. */
  #joined: Block[] = [];
  /** The end of all addresses ever handed out. */
  #end: number;
  #freeBytes = 0;
  readonly #start: number;

  /** `grow` makes the memory at least `endBytes` long, or returns false. */
  constructor(start: number, grow: (endBytes: number) => boolean) {
    this.#start = Math.ceil(start / LINE) * LINE;
    this.#end = this.#start;
    this.#grow = grow;
  }

  /** Bytes for tensors: in use or free. */
  get allBytes(): number {
    return this.#end - this.#start;
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  static #sizeOf(sizeBytes: number): number {
    return Math.ceil(sizeBytes / LINE) * LINE;
  }

  /** The address of a block, or null when no memory is left. */
  acquire(wantedBytes: number): number | null {
    const sizeBytes = Heap.#sizeOf(wantedBytes);
    const address = this.#bySize.get(sizeBytes)?.pop() ?? this.#cut(sizeBytes);
    if (address !== null) {
      this.#freeBytes -= sizeBytes;
      return address;
    }
    if (this.#freeBytes >= sizeBytes) {
      this.#join();
      const found = this.#cut(sizeBytes);
      if (found !== null) {
        this.#freeBytes -= sizeBytes;
        return found;
      }
    }
    return this.#extend(sizeBytes);
  }

  release(address: number, wantedBytes: number): void {
    const sizeBytes = Heap.#sizeOf(wantedBytes);
    const list = this.#bySize.get(sizeBytes);
    if (list) list.push(address);
    else this.#bySize.set(sizeBytes, [address]);
    this.#freeBytes += sizeBytes;
  }

  #extend(sizeBytes: number): number | null {
    // A free block at the end is extended.
    const last = this.#joined.at(-1);
    const tail = last && last.address + last.sizeBytes === this.#end ? last : null;
    const address = tail ? tail.address : this.#end;
    if (!this.#grow(address + sizeBytes)) return null;
    if (tail) {
      this.#joined.pop();
      this.#freeBytes -= tail.sizeBytes;
    }
    this.#end = address + sizeBytes;
    return address;
  }

  /** Takes `sizeBytes` from the smallest joined block that is large enough. */
  #cut(sizeBytes: number): number | null {
    let best = -1;
    for (const [i, block] of this.#joined.entries()) {
      if (block.sizeBytes < sizeBytes) continue;
      if (best < 0 || block.sizeBytes < this.#joined[best].sizeBytes) best = i;
    }
    if (best < 0) return null;
    const { address, sizeBytes: whole } = this.#joined[best];
    if (whole === sizeBytes) this.#joined.splice(best, 1);
    else this.#joined[best] = { address: address + sizeBytes, sizeBytes: whole - sizeBytes };
    return address;
  }

  #join(): void {
    const blocks = [...this.#joined];
    for (const [sizeBytes, addresses] of this.#bySize) {
      for (const address of addresses) blocks.push({ address, sizeBytes });
    }
    this.#bySize.clear();
    blocks.sort((a, b) => a.address - b.address);
    this.#joined = [];
    for (const block of blocks) {
      const last = this.#joined.at(-1);
      if (last && last.address + last.sizeBytes === block.address) {
        this.#joined[this.#joined.length - 1] = {
          address: last.address,
          sizeBytes: last.sizeBytes + block.sizeBytes,
        };
      } else this.#joined.push(block);
    }
  }
}
