import {
  buildOps,
  type Device,
  type DType,
  formatShape,
  type OpName,
  type Ops,
  rowOf,
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

/** The primary outputs of an op, in the form its method returns them. */
export function methodResult(op: OpName, outputs: Readonly<Record<string, Tensor>>): unknown {
  const primary = rowOf(op)
    .signature.outputs.filter((operand) => !operand.residual)
    .map((operand) => outputs[operand.name]);
  return primary.length === 1 ? primary[0] : primary.length === 0 ? undefined : primary;
}

/**
 * Ops for gradient rules, which remember what memory they made. A rule may hand back dy itself or a view of it, and what
 * is shared must not be added to in place.
 */
export class RuleOps {
  readonly ops: Ops;
  /** Tensors that these ops made: true for new memory, false for a view of memory that was there. */
  readonly #made = new WeakMap<Tensor, boolean>();

  constructor(device: Device) {
    this.ops = buildOps((op, inputs, attrs) => {
      const outputs = device.run(op, inputs, attrs);
      const [first] = inputs;
      const fresh = !rowOf(op).view || (first != null && this.#made.get(first) === true);
      for (const output of Object.values(outputs)) this.#made.set(output, fresh);
      return methodResult(op, outputs);
    });
  }

  /** Whether the tensor was made here, and of new memory. A second question about the same tensor finds it taken. */
  take(tensor: Tensor): { made: boolean; fresh: boolean } {
    const fresh = this.#made.get(tensor);
    this.#made.delete(tensor);
    return { made: fresh !== undefined, fresh: fresh ?? false };
  }
}

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
