import { firstNonFinite, type NonFinite } from "../anomaly.ts";
import { Device } from "../device.ts";
import { elementBytes, type HostArray, hostArray, storedArray } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { float16ToFloat32, toFloat16Bits } from "../float16.ts";
import { nextTask } from "../next-task.ts";
import type { Execution } from "../op-call.ts";
import { DEFAULT_PROFILE, type DeviceProfile } from "../profile.ts";
import { runReference } from "../reference.ts";
import type { Storage, Tensor } from "../tensor.ts";
import { WasmContext } from "./context.ts";
import { runByKernels } from "./kernels/index.ts";
import type { Runtime, WasmStatistics } from "./runtime.ts";

/**
 * The device for machines without a GPU: ops run as WebAssembly SIMD kernels over one linear memory, on all threads, and ops
 * without a kernel by their reference on the same memory. An op is finished when its call returns.
 */
export class WasmDevice extends Device {
  override readonly kind = "wasm";
  override readonly label: string;
  override readonly profile: DeviceProfile;
  /** Threads that compute, including the calling one. */
  readonly threads: number;
  /** null once the device is disposed: its memory goes though somebody still holds the device. */
  #runtime: Runtime | null;
  readonly #poison: boolean;
  readonly #context: WasmContext;
  #references = 0;

  /** Use `openWasm`. `poison` fills new memory with NaN, for tests. */
  constructor(runtime: Runtime, poison = false) {
    super();
    this.#runtime = runtime;
    this.#poison = poison;
    this.profile = {
      ...DEFAULT_PROFILE,
      adapterClass: "software",
      subgroups: false,
      maxBindingBytes: 2 ** 32,
      maxBufferBytes: 2 ** 32,
      wasm: { panelRows: runtime.panelRows },
    };
    this.#context = new WasmContext(this, (kernel, args, tasks) => this.#runtime!.run(kernel, args, tasks));
    const { threads, relaxedSimd } = runtime;
    this.threads = threads;
    this.label =
      `WebAssembly SIMD${relaxedSimd ? " with fused multiply-add" : ""}, ` +
      (threads === 1 ? "one thread" : `${threads} threads`);
  }

  /**
   * Bytes of linear memory, total and free; dispatches, and how many of them ran on all threads; ops that ran by their reference.
   * Throws `T-DEVICE-LOST`.
   */
  statistics(): WasmStatistics & { references: number } {
    this.assertUsable();
    return { ...this.#runtime!.statistics(), references: this.#references };
  }

  protected override allocate(storage: Storage): number {
    const runtime = this.#runtime!;
    const address = runtime.heap.acquire(storage.sizeBytes);
    if (address === null) {
      throw new SidenetError("T-OUT-OF-MEMORY", this.memory.explain(storage, runtime.whyFull()));
    }
    if (this.#poison) runtime.f32(address, storage.sizeBytes / 4).fill(Number.NaN);
    return address;
  }

  protected override deallocate(storage: Storage): void {
    this.#runtime?.heap.release(storage.handle as number, storage.sizeBytes);
    storage.handle = null;
  }

  protected override write(tensor: Tensor, values: ArrayLike<number>): void {
    const view = this.#view(tensor);
    if (tensor.dtype !== "f16") view.set(values);
    else for (let i = 0; i < view.length; i++) view[i] = toFloat16Bits(values[i]);
  }

  protected override async download(tensor: Tensor): Promise<HostArray> {
    const values = hostArray(tensor.dtype, tensor.size);
    values.set(this.#values(tensor));
    await nextTask();
    return values;
  }

  protected override finish(): Promise<void> {
    return nextTask();
  }

  protected override async findNonFinite(tensor: Tensor): Promise<NonFinite | null> {
    return firstNonFinite(this.#values(tensor));
  }

  /** Terminates the threads. */
  protected override close(): void {
    this.#runtime!.dispose();
    this.#runtime = null;
  }

  protected override compute(execution: Execution): void {
    if (runByKernels(this.#context, execution)) return;
    this.#references++;
    runReference(execution, {
      load: (tensor) => this.#values(tensor),
      store: (tensor, values) => this.write(tensor, values),
    });
  }

  /** A view of a tensor's memory; f16 as 16-bit integers. */
  #view({ dtype, size, storage, offset }: Tensor): ReturnType<typeof storedArray> {
    const address = (storage.handle as number) + offset * elementBytes(dtype);
    return storedArray(dtype, this.#runtime!.memory.buffer, address, size);
  }

  /** The values of a tensor: a view of its memory, or for f16 a copy. */
  #values(tensor: Tensor): HostArray {
    const view = this.#view(tensor);
    return view instanceof Uint16Array ? float16ToFloat32(view) : view;
  }
}
