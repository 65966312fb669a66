import {
  type Device,
  type DType,
  formatShape,
  type Shape,
  SidenetError,
  sameShape,
  type Tensor,
} from "@sidenet/tensor";

/** A tracked value, as the tape knows it: the tensor itself may be gone. */
export interface TrackedValue {
  readonly shape: Shape;
  readonly dtype: DType;
  /** Set for what is trained. */
  readonly leaf: { readonly name: string; readonly tensor: Tensor } | null;
}

/** f32 for a leaf, whatever it is stored as: optimizers need the small terms. Otherwise the value's own type. */
export const gradientDtype = ({ leaf, dtype }: TrackedValue): DType => (leaf ? "f32" : dtype);

interface Slot {
  gradient: Tensor;
  /** Nobody else sees its memory: it may be added to in place. */
  owned: boolean;
}

/** Gradients of values that the backward pass has reached and not yet consumed. */
export class GradientSlots {
  readonly #device: Device;
  readonly #slots = new Map<TrackedValue, Slot>();

  constructor(device: Device) {
    this.#device = device;
  }

  /** Adds a contribution; the handle is the slots' from here on. Several uses of one value sum. */
  add(value: TrackedValue, contribution: Tensor, owned: boolean): void {
    try {
      const slot = this.#slots.get(value);
      const next = this.#prepare(value, { gradient: contribution, owned }, slot === undefined);
      if (slot === undefined) this.#slots.set(value, next);
      else this.#sum(slot, next);
    } catch (error) {
      contribution.dispose("the failed backward pass"); // it may be in no scope
      throw error;
    }
  }

  /** Adds a contribution to each of the values; after an error none is left behind. */
  addAll(
    values: readonly TrackedValue[],
    contributions: readonly { readonly gradient: Tensor; readonly fresh: boolean }[],
  ): void {
    try {
      for (const [i, { gradient, fresh }] of contributions.entries()) this.add(values[i], gradient, fresh);
    } catch (error) {
      for (const { gradient } of contributions) gradient.dispose("the failed backward pass");
      throw error;
    }
  }

  /** Hands out the gradient of a value, once. */
  take(value: TrackedValue): Tensor | undefined {
    const slot = this.#slots.get(value);
    this.#slots.delete(value);
    return slot?.gradient;
  }

  dispose(): void {
    for (const { gradient } of this.#slots.values()) gradient.dispose("the failed backward pass");
    this.#slots.clear();
  }

  /** Brings a contribution to the type of the gradient; what becomes a leaf's gradient gets memory of its own. */
  #prepare(value: TrackedValue, slot: Slot, first: boolean): Slot {
    const { gradient, owned } = slot;
    if (!sameShape(gradient.shape, value.shape)) {
      gradient.dispose("a gradient rule's error");
      throw new SidenetError(
        "A-RULE",
        `a gradient rule made ${formatShape(gradient.shape)} for a value of ${formatShape(value.shape)}. ` +
          "This is a mistake in the rule: gradcheck its op.",
      );
    }
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

  /** In place when one side has memory of its own, so that two buffers are live and not three. */
  #sum(slot: Slot, next: Slot): void {
    const { ops } = this.#device;
    const by = "the sum it went into";
    if (slot.owned) {
      ops.accumulate(slot.gradient, next.gradient);
      next.gradient.dispose(by);
    } else if (next.owned) {
      ops.accumulate(next.gradient, slot.gradient);
      slot.gradient.dispose(by);
      Object.assign(slot, next);
    } else {
      const total = ops.add(slot.gradient, next.gradient);
      slot.gradient.dispose(by);
      next.gradient.dispose(by);
      Object.assign(slot, { gradient: total, owned: true });
    }
  }
}
