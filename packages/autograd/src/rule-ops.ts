import { buildOps, type Device, type Ops, rowOf, type Tensor } from "@sidenet/tensor";

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
      return outputs;
    });
  }

  /** Whether the tensor was made here, and of new memory. A second question about the same tensor finds it taken. */
  take(tensor: Tensor): { made: boolean; fresh: boolean } {
    const fresh = this.#made.get(tensor);
    this.#made.delete(tensor);
    return { made: fresh !== undefined, fresh: fresh ?? false };
  }
}
