import { type Device, sizeBytes, type Tensor } from "@sidenet/tensor";

/** One tensor that a tape keeps, for one or more of its records. */
export interface SavedTensor {
  /** The tape's own handle: the tensor's scope may end before the backward pass. */
  readonly handle: Tensor;
  /** What was saved; a residual is its own source. */
  readonly source: Tensor;
  /** The tape moved its bytes from "workspace" to "saved". */
  readonly relabelled: boolean;
  /** Records that still need it. */
  uses: number;
}

/** What a tape keeps for its backward pass: each tensor once, however many records need it. */
export class SavedTensors {
  readonly #device: Device;
  readonly #entries = new Map<Tensor, SavedTensor>();

  constructor(device: Device) {
    this.#device = device;
  }

  has(tensor: Tensor): boolean {
    return this.#entries.has(tensor);
  }

  /** Bytes that are live for the backward pass alone: weights and rungs that a rule saves are resident anyway. */
  get sizeBytes(): number {
    let bytes = 0;
    for (const { handle } of this.#entries.values()) {
      if (handle.category === "saved") bytes += sizeBytes(handle.dtype, handle.size);
    }
    return bytes;
  }

  /** Keeps an operand of an op alive. Its bytes count as "saved" unless they have a more telling category. */
  keep(tensor: Tensor): SavedTensor {
    const known = this.#entries.get(tensor);
    if (known) {
      known.uses++;
      return known;
    }
    const relabelled = tensor.category === "workspace";
    if (relabelled) this.#device.categorize(tensor, "saved");
    return this.#add({ handle: this.#device.retain(tensor), source: tensor, relabelled, uses: 1 });
  }

  /** Takes over a residual, which only the backward pass reads. */
  adopt(residual: Tensor): SavedTensor {
    this.#device.keep(residual, "saved");
    return this.#add({ handle: residual, source: residual, relabelled: false, uses: 1 });
  }

  /** One record needs it no more; frees it after the last. */
  release(saved: SavedTensor): void {
    if (--saved.uses > 0) return;
    this.#entries.delete(saved.source);
    this.#free(saved, "the backward pass, which had used it");
  }

  clear(by: string): void {
    for (const saved of this.#entries.values()) this.#free(saved, by);
    this.#entries.clear();
  }

  #add(saved: SavedTensor): SavedTensor {
    this.#entries.set(saved.source, saved);
    return saved;
  }

  #free({ handle, source, relabelled }: SavedTensor, by: string): void {
    handle.dispose(by);
    // Where someone else holds it still, it is workspace again.
    if (relabelled && !source.disposed) this.#device.categorize(source, "workspace");
  }
}
