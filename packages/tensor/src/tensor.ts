import type { Device } from "./device.ts";
import type { DType, HostArray } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import type { Allocation, Category } from "./memory.ts";
import { formatShape, type Shape, sizeOf } from "./shape.ts";

/** Device memory of one or more tensors. Internal to the package. */
export class Storage implements Allocation {
  readonly sizeBytes: number;
  readonly label: string;
  category: Category;
  /** The device's allocation: a typed array or a GPU buffer; null on `meta`. */
  handle: unknown = null;
  /** Number of tensors that share it. */
  references = 1;
  /** Number of changes in place. */
  version = 0;

  constructor(sizeBytes: number, label: string, category: Category) {
    this.sizeBytes = sizeBytes;
    this.label = label;
    this.category = category;
  }
}

let nextId = 1;

/**
 * A dense row-major array on a device. It carries no gradient state: a `Tape` knows what is tracked, a tensor does not.
 *
 * A tensor is freed when the scope it was made in ends without returning it, by `dispose()`, or by `using`.
 */
export class Tensor {
  readonly id = nextId++;
  readonly device: Device;
  readonly shape: Shape;
  readonly dtype: DType;
  /** Number of elements. */
  readonly size: number;
  /** @internal */ readonly storage: Storage;
  /** First element within the storage. @internal */ readonly offset: number;
  /** The scope that will free it, if any. @internal */ owner: Set<Tensor> | null = null;
  #freedBy: string | null = null;

  /** @internal */
  constructor(device: Device, shape: Shape, dtype: DType, storage: Storage, offset = 0) {
    this.device = device;
    this.shape = shape;
    this.dtype = dtype;
    this.size = sizeOf(shape);
    this.storage = storage;
    this.offset = offset;
  }

  /** The memory category that it counts under. */
  get category(): Category {
    return this.storage.category;
  }

  /** A key for maps that is the same for all views of the same memory. */
  get memoryKey(): object {
    return this.storage;
  }

  /** How often ops and `assign` have changed its memory in place, through any view. Kernels of the caller's do not count. */
  get version(): number {
    return this.storage.version;
  }

  /** Whether this handle was freed; using it throws `T-USE-AFTER-FREE`. */
  get disposed(): boolean {
    return this.#freedBy !== null;
  }

  /**
   * Copies the values at the time of the call to the host, f16 widened to f32. On every device other tasks of this thread, such as
   * timers and requests, have their turn before it resolves. Rejects with `T-USE-AFTER-FREE`, and with errors
   * that the device reports.
   */
  async read(): Promise<HostArray> {
    return this.device.read(this);
  }

  /** The value of a one-element tensor. Throws `T-SHAPE` for any other. */
  async item(): Promise<number> {
    if (this.size !== 1) {
      throw new SidenetError("T-SHAPE", `item() wants one element, ${this} has ${this.size}. Use read().`);
    }
    return (await this.read())[0];
  }

  /** Frees the tensor, and its memory unless another tensor shares it. A second call does nothing. */
  dispose(by = "dispose()"): void {
    if (this.#freedBy !== null) return;
    this.#freedBy = by;
    this.owner?.delete(this);
    this.owner = null;
    this.device.releaseStorage(this.storage);
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Throws `T-USE-AFTER-FREE`, naming what freed it. @internal */
  assertLive(user: string): void {
    if (this.#freedBy === null) return;
    throw new SidenetError(
      "T-USE-AFTER-FREE",
      `${user} was given ${this} (made by ${this.storage.label}), freed by ${this.#freedBy}. ` +
        "Return it from that scope, or keep() it.",
    );
  }

  /** Throws `T-DEVICE` for another device than its own. @internal */
  assertOn(device: Device, user: string, operand?: string): void {
    if (this.device === device) return;
    const { kind } = this.device;
    const where =
      kind === device.kind ? `on another ${kind} device` : `on ${kind}, and this is ${device.kind}`;
    throw new SidenetError(
      "T-DEVICE",
      `${user}: ${operand ? `${operand} (${this})` : this} is ${where}. Read it, and make a tensor of the values here.`,
    );
  }

  /** Number, type and shape, for messages. */
  toString(): string {
    return `tensor #${this.id} (${this.dtype} ${formatShape(this.shape)})`;
  }
}
