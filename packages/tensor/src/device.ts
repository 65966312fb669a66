import { AnomalyWatch, firstNonFinite, type NonFinite } from "./anomaly.ts";
import { type DType, type HostArray, hostArray, isFloat, sizeBytes } from "./dtype.ts";
import { SidenetError } from "./errors.ts";
import { checkValues } from "./host-values.ts";
import { type Category, MemoryAccount } from "./memory.ts";
import type { AnyOpRow } from "./op.ts";
import { bindCall, type Execution, refuseOverlap } from "./op-call.ts";
import { buildOps, type OpOrName, type Ops, rowOf } from "./ops/index.ts";
import type { DeviceProfile } from "./profile.ts";
import type { RepeatCall } from "./repeat-call.ts";
import { ScopeStack } from "./scope.ts";
import { checkShape, formatShape, type Shape, sizeOf } from "./shape.ts";
import type { TensorSpec } from "./signature.ts";
import { Storage, Tensor } from "./tensor.ts";
import { textureBytes } from "./texture-layout.ts";

/** The backend: the reference, a GPU, WebAssembly, or none (`meta`: shapes and memory accounting only). */
export type DeviceKind = "cpu" | "webgpu" | "wasm" | "meta";

/** Storage sizes are multiples of this, so that kernels may access the last elements as a vec4. */
const STORAGE_ALIGNMENT = 16;

const PLAIN_SCOPE = "a scope";

/** Dtype, memory category and label of a new tensor. */
export interface TensorOptions {
  readonly dtype?: DType;
  readonly category?: Category;
  readonly label?: string;
}

/**
 * Holds tensors and runs ops. `ops` computes without recording; a tape is another `Ops` over the same device that records.
 */
export abstract class Device {
  abstract readonly kind: DeviceKind;
  /** Description for users: "llvmpipe (LLVM 15.0.6, 256 bits), Mesa 25.0.7". */
  abstract readonly label: string;
  abstract readonly profile: DeviceProfile;
  readonly ops: Ops = buildOps((row, inputs, attrs) => this.run(row, inputs, attrs));
  readonly memory = new MemoryAccount();
  /** Whether tensors have values; false on `meta`. */
  readonly holdsValues: boolean = true;
  /** Called with the name of each op after its call, views included. */
  onOp: ((name: string) => void) | null = null;
  /** Floating-point operations of all ops since the device was created (methods.md, 6). */
  flops = 0;
  /** The same by op, without ops that compute nothing. */
  readonly flopsByOp = new Map<string, number>();
  readonly #scopes = new ScopeStack();
  readonly #anomalies = new AnomalyWatch((tensor) => this.findNonFinite(tensor));
  #detectsAnomaly = false;
  #isDisposed = false;

  // Methods of a backend. After `dispose()` only `deallocate` is still called.

  protected abstract allocate(storage: Storage): unknown;
  protected abstract deallocate(storage: Storage): void;
  /** Allocates a texture for a tensor and copies the tensor into it. Devices without kernels return null. */
  protected allocateTexture(_storage: Storage, _tensor: Tensor): unknown {
    return null;
  }
  protected abstract write(tensor: Tensor, values: ArrayLike<number>): void;
  protected abstract compute(execution: Execution): void;
  /** Returns the values at the time of the call, even if later ops change them before the promise resolves. */
  protected abstract download(tensor: Tensor): Promise<HostArray>;
  protected abstract finish(): Promise<void>;
  /** The first NaN or infinity in a float tensor at the time of the call. */
  protected async findNonFinite(tensor: Tensor): Promise<NonFinite | null> {
    return firstNonFinite(await this.download(tensor));
  }
  /** Releases the resources of the device, such as threads. Called once. */
  protected close(): void {}

  // Disposal.

  /**
   * Releases the device. Afterwards its tensors can still be freed; any other use throws `T-DEVICE-LOST`. A second call does
   * nothing.
   */
  dispose(): void {
    if (this.#isDisposed) return;
    this.#isDisposed = true;
    this.close();
  }

  /** For `using`. */
  [Symbol.dispose](): void {
    this.dispose();
  }

  /** Whether the device was disposed. */
  get disposed(): boolean {
    return this.#isDisposed;
  }

  /** Throws `T-DEVICE-LOST` after `dispose()`; a subclass throws its own errors too, such as a lost GPU. */
  protected assertUsable(): void {
    if (!this.#isDisposed) return;
    throw new SidenetError(
      "T-DEVICE-LOST",
      `${this.label} was disposed. Open another device, and make the tensors there.`,
    );
  }

  // Waiting.

  /** The same as `tensor.read()`. */
  async read(tensor: Tensor): Promise<HostArray> {
    this.assertOwn(tensor, "read");
    this.assertUsable();
    return this.#anomalies.during(() => this.download(tensor));
  }

  /**
   * Resolves when all ops so far have run. Rejects with the first error that the driver reported, and with `T-ANOMALY` if
   * `detectAnomaly` found one. Such an error is told once, to all reads and waits in flight.
   */
  async synchronize(): Promise<void> {
    this.assertUsable();
    await this.#anomalies.during(() => this.finish());
  }

  /**
   * Checks the outputs of every op. If an op makes a NaN or infinity from finite inputs, the next `read` or `synchronize` rejects
   * with `T-ANOMALY`, which names the first such op, the element and the shapes of the inputs. Slow: a GPU copies each result to
   * the host. Values that came from the host are not reported. Does nothing on `meta`, which has no values.
   *
   * On a GPU a NaN may vanish later without this: WGSL promises nothing about NaN, and exp, relu, clamp, softmax or attention may
   * take one for a number.
   */
  get detectAnomaly(): boolean {
    return this.#detectsAnomaly;
  }

  /** Switches the check on or off for the following ops. What it has found is still reported. */
  set detectAnomaly(on: boolean) {
    if (on && !this.#detectsAnomaly) this.#anomalies.forgetAll();
    this.#detectsAnomaly = on;
  }

  // Tensors.

  /** A tensor with undefined contents. Throws `T-SHAPE`, `T-DTYPE`, `T-TOO-LARGE` or `T-OUT-OF-MEMORY`. */
  empty(shape: Shape, options: TensorOptions = {}): Tensor {
    this.assertUsable();
    const { dtype = "f32", category = "workspace", label = "empty" } = options;
    checkShape(shape, label);
    this.checkDtype(dtype, label);
    const padded =
      Math.ceil(sizeBytes(dtype, sizeOf(shape)) / STORAGE_ALIGNMENT) * STORAGE_ALIGNMENT || STORAGE_ALIGNMENT;
    const storage = new Storage(padded, label, category);
    return this.place(storage, shape, dtype, () => this.allocate(storage));
  }

  /** A tensor over a new storage, in the memory that `allocate` returns. */
  protected place(storage: Storage, shape: Shape, dtype: DType, allocate: () => unknown): Tensor {
    this.#reserve(storage, allocate);
    const tensor = new Tensor(this, shape.slice(), dtype, storage);
    this.#scopes.adopt(tensor);
    return tensor;
  }

  /**
   * A tensor with the given values in row-major order. A function for them is not called on `meta`. Throws `T-SHAPE` if their
   * number does not fit the shape, `T-VALUE` for anything but an array of numbers that the dtype holds.
   */
  tensor(
    values: ArrayLike<number> | (() => ArrayLike<number>),
    shape: Shape,
    options: TensorOptions = {},
  ): Tensor {
    const { label = "tensor", dtype = "f32" } = options;
    if (typeof values === "function" && !this.holdsValues) return this.empty(shape, { ...options, label });
    const given = typeof values === "function" ? values() : values;
    checkShape(shape, label);
    checkValues(given, dtype, label);
    if (given.length !== sizeOf(shape)) {
      throw new SidenetError(
        "T-SHAPE",
        `${label}: ${given.length} values do not fill ${formatShape(shape)} (${sizeOf(shape)}).`,
      );
    }
    const tensor = this.empty(shape, { ...options, label });
    return this.#filled(tensor, () => this.write(tensor, given));
  }

  /**
   * Overwrites all values of a tensor, for instance with those of a checkpoint. Does nothing on `meta`. Throws `T-SHAPE` if their
   * number does not fit or the tensor is a view at an offset, `T-VALUE`, `T-DEVICE` and `T-USE-AFTER-FREE`.
   */
  assign(tensor: Tensor, values: ArrayLike<number>): void {
    this.assertUsable();
    this.assertOwn(tensor, "assign");
    checkValues(values, tensor.dtype, "assign");
    if (values.length !== tensor.size || tensor.offset !== 0) {
      const why = tensor.offset !== 0 ? "it is a view" : `${values.length} values were given`;
      throw new SidenetError(
        "T-SHAPE",
        `cannot assign to ${tensor}: ${why}, wanted ${tensor.size} of its own.`,
      );
    }
    if (this.holdsValues) this.write(tensor, values);
    this.#anomalies.forget(tensor);
    tensor.storage.version++;
  }

  /** A tensor of zeros. Throws `T-OUT-OF-MEMORY`, and `T-DTYPE` for a type that the device cannot store. */
  zeros(shape: Shape, options: TensorOptions = {}): Tensor {
    const tensor = this.empty(shape, { label: "zeros", ...options });
    return this.#filled(tensor, () => {
      if (isFloat(tensor.dtype)) this.ops.fill(tensor, { value: 0 });
      else this.assign(tensor, hostArray(tensor.dtype, tensor.size));
    });
  }

  /** Counts a storage and allocates its memory; if either fails, neither is done. */
  #reserve(storage: Storage, allocate: () => unknown): void {
    try {
      this.memory.reserve(storage);
      storage.handle = allocate();
    } catch (error) {
      this.memory.free(storage);
      throw error;
    }
  }

  #filled(tensor: Tensor, fill: () => void): Tensor {
    try {
      fill();
      return tensor;
    } catch (error) {
      tensor.dispose("what failed to fill it"); // nobody else has it
      throw error;
    }
  }

  /**
   * Another tensor over the same memory, owned by the caller and not by a scope. Views and tapes use it. Throws `T-DEVICE` and
   * `T-USE-AFTER-FREE`.
   */
  retain(tensor: Tensor): Tensor {
    this.assertUsable();
    this.assertOwn(tensor, "retain");
    return this.alias(tensor, tensor.shape, tensor.offset);
  }

  /**
   * Runs `body`, then frees the tensors in `consume` and every tensor made inside that is not kept or returned: by itself, or in
   * arrays, sets, maps and plain objects, but not in an instance of a class. If the body throws, it frees all that was made
   * inside and consumes nothing. Throws `T-SCOPE` for a body that returns a promise.
   */
  scope<R>(body: () => R, options: { consume?: Iterable<Tensor>; label?: string } = {}): R {
    return this.#scopes.run(body, options.consume ?? [], options.label ?? PLAIN_SCOPE);
  }

  /**
   * Runs `body` in a scope and returns the tensors that it makes, under its names for them. Those in `consume` are freed.
   *
   * A GPU runs it only until two calls with one owner and key have issued the same commands. Later calls issue these again, which
   * takes a fraction of the host's time. So `body` may depend only on the key, the values of the inputs, and tensors that live on,
   * and not on other numbers of the host; and it may do nothing but return new tensors and free its inputs.
   */
  repeat<K>(
    _call: RepeatCall,
    body: () => ReadonlyMap<K, Tensor>,
    options: { consume?: readonly Tensor[] } = {},
  ): ReadonlyMap<K, Tensor> {
    return this.scope(body, options);
  }

  /** Labels of the open scopes, outermost first, without the scopes that were given none. */
  get scopeLabels(): readonly string[] {
    return this.#scopes.labels.filter((label) => label !== PLAIN_SCOPE);
  }

  /** Takes a tensor out of its scope, so that it lives until `dispose()`; optionally changes its category. Throws `T-NAME`, `T-DEVICE`, `T-USE-AFTER-FREE`. */
  keep(tensor: Tensor, category?: Category): Tensor {
    this.assertOwn(tensor, "keep");
    if (category !== undefined) this.categorize(tensor, category);
    this.#scopes.keep(tensor);
    return tensor;
  }

  /** Counts the memory of a tensor under another category from now on. Throws `T-NAME`, `T-DEVICE`, `T-USE-AFTER-FREE`. */
  categorize(tensor: Tensor, category: Category): void {
    this.assertOwn(tensor, "categorize");
    this.memory.recategorize(tensor.storage, category);
  }

  /** @internal */
  releaseStorage(storage: Storage): void {
    if (--storage.references > 0) return;
    this.memory.free(storage);
    this.deallocate(storage);
  }

  // Ops.

  /**
   * Runs an op and returns its outputs by name. Residuals are made only when named in `wanted`.
   * Model code calls `ops`; this is for tapes. Throws `T-OP`, `T-SHAPE`, `T-DTYPE`, `T-DEVICE`, `T-USE-AFTER-FREE`, and
   * `T-VALUE` for an operand in the memory of one that the op updates.
   */
  run(
    op: OpOrName,
    inputs: readonly (Tensor | null | undefined)[],
    attrs: object = {},
    wanted: readonly string[] = [],
  ): Record<string, Tensor> {
    this.assertUsable();
    const row = rowOf(op);
    const { name } = row;
    const call = bindCall(row, { inputs, attrs, wanted }, (tensor, operand) =>
      this.assertOwn(tensor, name, operand),
    );
    refuseOverlap(call);
    const outputs: Record<string, Tensor> = {};
    try {
      for (const [output, spec] of call.outputs) {
        const { shape, dtype } = spec;
        const tensor = row.view ? this.#view(row, call.io, spec) : this.empty(shape, { dtype, label: name });
        outputs[output] = tensor;
        call.io[output] = tensor;
      }
      this.countFlops(
        name,
        row.flops(call.dims, call.attrs, (output) => outputs[output] !== undefined),
      );
      if (!row.view) this.#compute(call);
      for (const operand of row.signature.inputs)
        if (operand.updated) call.io[operand.name]!.storage.version++;
      this.onOp?.(name);
    } catch (error) {
      for (const output of Object.values(outputs)) output.dispose(`the failure of ${name}`);
      throw error;
    }
    return outputs;
  }

  protected checkDtype(dtype: DType, label: string): void {
    if (dtype === "f16" && !this.profile.f16) {
      throw new SidenetError(
        "T-DTYPE",
        `${label}: ${this.label} has no f16 storage (the WebGPU feature shader-f16). Use f32.`,
      );
    }
  }

  /** Copies a tensor to a texture (op.ts, `KernelContext.texture`), owned by the caller. @internal */
  texture(tensor: Tensor, label: string): Tensor {
    const storage = new Storage(textureBytes(sizeBytes(tensor.dtype, tensor.size)), label, "workspace");
    this.#reserve(storage, () => this.allocateTexture(storage, tensor));
    return new Tensor(this, tensor.shape, tensor.dtype, storage);
  }

  /** A tensor over part of another's memory. @internal */
  alias(tensor: Tensor, shape: Shape, offset: number): Tensor {
    tensor.storage.references++;
    return new Tensor(this, shape, tensor.dtype, tensor.storage, offset);
  }

  protected countFlops(name: string, flops: number): void {
    if (flops === 0) return;
    this.flops += flops;
    this.flopsByOp.set(name, (this.flopsByOp.get(name) ?? 0) + flops);
  }

  #compute(execution: Execution): void {
    const { row, io } = execution;
    const watched = this.#detectsAnomaly ? this.#anomalies.before(row, io) : null;
    this.compute(execution);
    if (watched) this.#anomalies.after(row, io, watched);
  }

  #view(row: AnyOpRow, io: Record<string, Tensor | null>, spec: TensorSpec): Tensor {
    const source = io[row.signature.inputs[0].name];
    if (source === null || sizeOf(spec.shape) !== source.size) {
      throw new SidenetError(
        "T-SHAPE",
        `${row.name}: ${source} has ${source?.size} elements, ${formatShape(spec.shape)} wants ${sizeOf(spec.shape)}.`,
      );
    }
    checkShape(spec.shape, row.name);
    const view = this.alias(source, spec.shape.slice(), source.offset);
    this.#scopes.adopt(view);
    return view;
  }

  /** Throws `T-VALUE` for what is no tensor, `T-USE-AFTER-FREE`, and `T-DEVICE` for a tensor of another device. */
  protected assertOwn(tensor: Tensor, user: string, operand?: string): void {
    if (!(tensor instanceof Tensor))
      throw new SidenetError("T-VALUE", `${user} was given ${tensor}, wanted a tensor.`);
    tensor.assertLive(user);
    tensor.assertOn(this, user, operand);
  }
}
