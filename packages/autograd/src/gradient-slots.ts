import type { Device, DType, Shape, Tensor } from "@sidenet/tensor";

/** A tracked value as the tape knows it, without its tensor, which may be freed before the backward pass. */
export interface TrackedValue {
  readonly shape: Shape;
  readonly dtype: DType;
  /** Set for the tensors that are trained. */
  readonly leaf: { readonly name: string; readonly tensor: Tensor } | null;
}

/** f32 for a leaf, whatever its dtype, since optimizers need the small terms; the value's own dtype otherwise. */
export const gradientDtype = ({ leaf, dtype }: TrackedValue): DType => (leaf ? "f32" : dtype);

/** A gradient, or a part of one. */
interface Slot {
  readonly gradient: Tensor;
  /** No one else has this memory, so it may be accumulated into. */
  readonly owned: boolean;
}

/** Gradients that the backward pass has started to sum and not yet consumed, by value. */
export class GradientSlots {
  readonly #device: Device;
  readonly #slots = new Map<TrackedValue, Slot>();

  constructor(device: Device) {
    this.#device = device;
  }

  /**
   * Adds a contribution to each of the values and takes over its handle; those of several uses of a value are summed. After an
   * error none is left behind.
   */
  add(values: readonly TrackedValue[], contributions: readonly Slot[]): void {
    try {
      for (const [i, contribution] of contributions.entries()) this.#addTo(values[i], contribution);
    } catch (error) {
      for (const { gradient } of contributions) gradient.dispose("the failed backward pass"); // no scope may own it
      throw error;
    }
  }

  #addTo(value: TrackedValue, contribution: Slot): void {
    const slot = this.#slots.get(value);
    const next = this.#prepare(value, contribution, slot === undefined);
    this.#slots.set(value, slot === undefined ? next : this.#sum(slot, next));
  }

  /** Removes the gradient of a value and returns it. */
  take(value: TrackedValue): Tensor | undefined {
    const slot = this.#slots.get(value);
    this.#slots.delete(value);
    return slot?.gradient;
  }

  dispose(): void {
    for (const { gradient } of this.#slots.values()) gradient.dispose("the failed backward pass");
    this.#slots.clear();
  }

  /** Casts a contribution to the gradient's dtype; the first one of a leaf gets memory of its own. */
  #prepare(value: TrackedValue, slot: Slot, first: boolean): Slot {
    const { gradient, owned } = slot;
    const dtype = gradientDtype(value);
    const copies = gradient.dtype !== dtype || (value.leaf !== null && first && !owned);
    const result = copies ? { gradient: this.#cast(gradient, dtype), owned: true } : slot;
    if (value.leaf !== null && first) this.#device.categorize(result.gradient, "gradients");
    return result;
  }

  #cast(gradient: Tensor, to: DType): Tensor {
    try {
      return this.#device.ops.cast(gradient, { to });
    } finally {
      gradient.dispose("a cast of it");
    }
  }

  /** Sums in place when one side owns its memory, so that two buffers are alive instead of three. */
  #sum(slot: Slot, next: Slot): Slot {
    const { ops } = this.#device;
    const by = "its accumulation";
    if (slot.owned || next.owned) {
      const [total, other] = slot.owned ? [slot, next] : [next, slot];
      ops.accumulate(total.gradient, other.gradient);
      other.gradient.dispose(by);
      return total;
    }
    const sum = ops.add(slot.gradient, next.gradient);
    slot.gradient.dispose(by);
    next.gradient.dispose(by);
    return { gradient: sum, owned: true };
  }
}
