import type { Device } from "./device.ts";
import { SidenetError } from "./errors.ts";
import type { Category } from "./memory.ts";
import type { Tensor } from "./tensor.ts";

/**
 * Owns named, long-lived tensors such as weights and optimizer state. Freed by `using` or `dispose()`; asking it for tensors
 * afterwards throws `T-USE-AFTER-FREE`.
 */
export class ParamStore {
  readonly device: Device;
  readonly category: Category;
  readonly #tensors = new Map<string, Tensor>();
  #isDisposed = false;

  constructor(device: Device, category: Category) {
    this.device = device;
    this.category = category;
  }

  /** A store whose tensors `fill` adds; if that throws, they are all freed. */
  static filled(device: Device, category: Category, fill: (store: ParamStore) => void): ParamStore {
    const store = new ParamStore(device, category);
    try {
      fill(store);
      return store;
    } catch (error) {
      store.dispose();
      throw error;
    }
  }

  /** Takes ownership of the tensor. Throws `T-NAME` when the name is taken. */
  add(name: string, tensor: Tensor): Tensor {
    this.#assertOpen(`add("${name}")`);
    if (this.#tensors.has(name))
      throw new SidenetError(
        "T-NAME",
        `a parameter named "${name}" is already in the store. To overwrite its values, use device.assign.`,
      );
    this.#tensors.set(name, this.device.keep(tensor, this.category));
    return tensor;
  }

  /** The tensor of that name. Throws `T-NAME` for an unknown name. */
  get(name: string): Tensor {
    this.#assertOpen(`get("${name}")`);
    const tensor = this.#tensors.get(name);
    if (tensor === undefined) {
      throw new SidenetError(
        "T-NAME",
        `no parameter named "${name}"; there are ${this.#tensors.size} others.`,
      );
    }
    return tensor;
  }

  /** The tensor of that name; null for an unknown name. */
  find(name: string): Tensor | null {
    this.#assertOpen(`find("${name}")`);
    return this.#tensors.get(name) ?? null;
  }

  /** Whether there is a tensor of that name. */
  has(name: string): boolean {
    this.#assertOpen(`has("${name}")`);
    return this.#tensors.has(name);
  }

  /** Names of the tensors, in the order of `add`. */
  names(): string[] {
    this.#assertOpen("names()");
    return [...this.#tensors.keys()];
  }

  /** The tensors with their names. */
  [Symbol.iterator](): IterableIterator<[string, Tensor]> {
    this.#assertOpen("iteration");
    return this.#tensors.entries();
  }

  /** Number of elements of all parameters. */
  get count(): number {
    this.#assertOpen("count");
    let count = 0;
    for (const tensor of this.#tensors.values()) count += tensor.size;
    return count;
  }

  /** Whether the store and its tensors were disposed. */
  get disposed(): boolean {
    return this.#isDisposed;
  }

  /** Frees all tensors. A second call does nothing. */
  dispose(): void {
    this.#isDisposed = true;
    for (const tensor of this.#tensors.values()) tensor.dispose("its ParamStore");
    this.#tensors.clear();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  #assertOpen(asked: string): void {
    if (!this.#isDisposed) return;
    throw new SidenetError(
      "T-USE-AFTER-FREE",
      `${asked} was asked of a ParamStore of "${this.category}" tensors that was disposed. Dispose of it, or of the adapter, ` +
        "model or optimizer that owns it, after what still uses it.",
    );
  }
}
