// WebGPU's flag constants are globals that Dawn installs late; their values are fixed by the specification.
export const USAGE = {
  MAP_READ: 1,
  COPY_SRC: 4,
  COPY_DST: 8,
  UNIFORM: 64,
  STORAGE: 128,
  QUERY_RESOLVE: 512,
} as const;

/** A buffer or texture with a unique id for bind-group keys. */
export interface Pooled<R> {
  readonly id: number;
  readonly gpu: R;
  readonly sizeBytes: number;
}

export type PooledBuffer = Pooled<GPUBuffer>;
export type PooledTexture = Pooled<GPUTexture>;

let nextId = 1;

/** Where `id` is in a list by falling ids, or would be. */
function placeOf(id: number, list: readonly Pooled<unknown>[]): number {
  let [low, high] = [0, list.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (list[middle].id > id) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Keeps free buffers (or textures) by exact size: the shapes of a training step repeat, so most requests need no allocation.
 * The one with the lowest id goes out first, so who gets which depends on which are free, and not on the order in which they came
 * back: in a repeated step every op gets the buffers that it had, for which there are bind groups already.
 * When the total exceeds the peak in use by more than `limitBytes`, the longest unused are destroyed. A buffer may be released as
 * soon as its last command is encoded, since commands run in order, but it is destroyed only after a submit.
 */
export class BufferPool<R extends { destroy(): void } = GPUBuffer> {
  readonly #allocate: (sizeBytes: number) => R;
  #limitBytes: number;
  /** By size, each list by falling ids. */
  readonly #free = new Map<number, Pooled<R>[]>();
  /** Free buffers, longest unused first. */
  readonly #queue = new Set<Pooled<R>>();
  /** Buffers in use for which the device had no memory. */
  readonly #failed = new Set<Pooled<R>>();
  #freeBytes = 0;
  #allBytes = 0;
  /** Peak of the bytes in use. */
  #peakInUse = 0;

  constructor(allocate: (sizeBytes: number) => R, limitBytes: number) {
    this.#allocate = allocate;
    this.#limitBytes = limitBytes;
  }

  /** Bytes of all buffers, in use and free: what the driver holds. */
  get allBytes(): number {
    return this.#allBytes;
  }

  get freeBytes(): number {
    return this.#freeBytes;
  }

  /** A free one of this size, or null. */
  reuse(sizeBytes: number): Pooled<R> | null {
    const found = this.#free.get(sizeBytes)?.pop();
    if (!found) return null;
    this.#queue.delete(found);
    this.#freeBytes -= sizeBytes;
    this.#noteUse();
    return found;
  }

  /** Takes this one out; false where it is not free. */
  take(buffer: Pooled<R>): boolean {
    if (!this.#queue.has(buffer)) return false;
    this.#remove(buffer);
    this.#noteUse();
    return true;
  }

  /** A new one. */
  create(sizeBytes: number): Pooled<R> {
    const gpu = this.#allocate(sizeBytes);
    this.#allBytes += sizeBytes;
    this.#noteUse();
    return { id: nextId++, gpu, sizeBytes };
  }

  #noteUse(): void {
    this.#peakInUse = Math.max(this.#peakInUse, this.#allBytes - this.#freeBytes);
  }

  release(buffer: Pooled<R>): void {
    if (this.#failed.delete(buffer)) {
      this.#destroy(buffer);
      return;
    }
    const list = this.#free.get(buffer.sizeBytes);
    if (list) list.splice(placeOf(buffer.id, list), 0, buffer);
    else this.#free.set(buffer.sizeBytes, [buffer]);
    this.#queue.add(buffer);
    this.#freeBytes += buffer.sizeBytes;
  }

  /**
   * Destroys free buffers beyond the peak in use plus the limit, `wantedBytes` counted as in use. Up to the peak they cost no extra
   * memory, and a repeated step finds all its buffers again. Call only after a submit.
   */
  trim(wantedBytes = 0): void {
    const peak = Math.max(this.#peakInUse, this.#allBytes - this.#freeBytes + wantedBytes);
    for (const buffer of this.#queue) {
      if (this.#allBytes + wantedBytes <= peak + this.#limitBytes) return;
      this.#remove(buffer);
      this.#destroy(buffer);
    }
  }

  /**
   * The device had no memory for `buffer`: it is not used again. The peak is measured anew and nothing is kept beyond it, so that
   * free buffers leave their memory to other sizes.
   */
  fail(buffer: Pooled<R>): void {
    if (this.#queue.has(buffer)) {
      this.#remove(buffer);
      this.#destroy(buffer);
    } else this.#failed.add(buffer);
    this.#peakInUse = 0;
    this.#limitBytes = 0;
  }

  #remove(buffer: Pooled<R>): void {
    this.#queue.delete(buffer);
    const list = this.#free.get(buffer.sizeBytes)!;
    list.splice(placeOf(buffer.id, list), 1);
    if (list.length === 0) this.#free.delete(buffer.sizeBytes);
    this.#freeBytes -= buffer.sizeBytes;
  }

  #destroy(buffer: Pooled<R>): void {
    this.#allBytes -= buffer.sizeBytes;
    buffer.gpu.destroy();
  }
}
