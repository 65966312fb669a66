import type { Device } from "./device.ts";
import { SidenetError } from "./errors.ts";
import type { Category } from "./memory.ts";
import type { Tensor } from "./tensor.ts";

/** Named resident tensors with one owner: weights, optimizer state. Closed by `using` or `dispose()`. */
export class ParamStore {
  readonly device: Device;
  readonly category: Category;
  readonly #tensors = new Map<string, Tensor>();

  constructor(device: Device, category: Category) {
    this.device = device;
    this.category = category;
  }

  /** Takes ownership of the tensor. Throws `T-NAME` when the name is taken. */
  set(name: string, tensor: Tensor): Tensor {
    if (this.#tensors.has(name))
      throw new SidenetError("T-NAME", `a parameter named "${name}" is already in the store.`);
    this.#tensors.set(name, this.device.keep(tensor, this.category));
    return tensor;
  }

  /** Throws `T-NAME` for a name that is not there. */
  get(name: string): Tensor {
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) {
      throw new SidenetError(
        "T-NAME",
        `no parameter named "${name}"; there are ${this.#tensors.size} others.`,
      );
    }
    return tensor;
  }

  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /** Names of its tensors, in the order in which they were added. */
  names(): string[] {
    return [...this.#tensors.keys()];
  }

  /** Its tensors with their names. */
  [Symbol.iterator](): IterableIterator<[string, Tensor]> {
    return this.#tensors.entries();
  }

  /** Number of elements of all parameters. */
  get count(): number {
    let count = 0;
    for (const tensor of this.#tensors.values()) count += tensor.size;
    return count;
  }

  /** Frees all its tensors. */
  dispose(): void {
    for (const tensor of this.#tensors.values()) tensor.dispose("its ParamStore");
    this.#tensors.clear();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }
}
