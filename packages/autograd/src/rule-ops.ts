import { buildOps, type Device, type Ops, type Tensor } from "@sidenet/tensor";

/**
 * Ops for gradient rules, which remember which tensors they made. A rule may return dy itself or a view of it, and shared
 * memory must not be accumulated into.
 */
export class RuleOps {
  readonly ops: Ops;
  /** Tensors that these ops made: true for new memory, false for a view of memory made elsewhere. */
  readonly #made = new WeakMap<Tensor, boolean>();

  constructor(device: Device) {
    this.ops = buildOps((row, inputs, attrs) => {
      const outputs = device.run(row, inputs, attrs);
      const [first] = inputs;
      const fresh = !row.view || (first != null && this.#made.get(first) === true);
      for (const output of Object.values(outputs)) this.#made.set(output, fresh);
      return outputs;
    });
  }

  /** Whether these ops made the tensor, and in new memory. Asked again about the same tensor, it answers no. */
  take(tensor: Tensor): { made: boolean; fresh: boolean } {
    const fresh = this.#made.get(tensor);
    this.#made.delete(tensor);
    return { made: fresh !== undefined, fresh: fresh ?? false };
  }
}
