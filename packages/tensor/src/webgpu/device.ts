import { Device } from "../device.ts";
import { elementBytes, type HostArray, hostArray, sizeBytes } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { withKernelContext } from "../kernel-context.ts";
import type { Allocation } from "../memory.ts";
import type { KernelCall, KernelEntry } from "../op.ts";
import type { Execution } from "../op-call.ts";
import { isInTable } from "../ops/index.ts";
import type { DeviceProfile, Tiles } from "../profile.ts";
import type { RepeatCall } from "../repeat-call.ts";
import { Storage, type Tensor } from "../tensor.ts";
import { BindGroupCache } from "./bind-groups.ts";
import { BufferPool, type Pooled, type PooledBuffer, USAGE } from "./buffer-pool.ts";
import { CommandStream } from "./command-stream.ts";
import { DriverErrors } from "./driver-errors.ts";
import { fromBytes, toBytes } from "./host-bytes.ts";
import { checkCall, dtypesOf, extentsOf, foldGrid } from "./kernel-call.ts";
import { addKernelSource, type KernelSource, kernelSource, packParams } from "./kernel-source.ts";
import type { KernelTime } from "./kernel-time.ts";
import { PipelineCache, pipelineKey } from "./pipelines.ts";
import type { Handle } from "./recording.ts";
import { Repeats } from "./repeats.ts";
import { createTexture, isTexture } from "./textures.ts";
import type { WebGpuType } from "./webgpu-type.ts";

const POOL_LIMIT_BYTES = 2 ** 28;
const TEXTURE_POOL_LIMIT_BYTES = 2 ** 26;
const STAGING_POOL_LIMIT_BYTES = 2 ** 24;

/** What `openWebGpu` passes to the device. */
interface WebGpuSettings {
  readonly label: string;
  readonly profile: DeviceProfile;
  readonly immediates: boolean;
  /** Fill new memory with NaN, which reveals kernels that read memory nobody wrote. For tests. */
  readonly poison: boolean;
}

/** The WebGPU device: ops become dispatches, which are submitted in batches; only reads wait for the GPU. */
export class WebGpuDevice extends Device {
  override readonly kind = "webgpu";
  override readonly label: string;
  override profile: DeviceProfile;
  readonly gpu: WebGpuType<"GPUDevice">;
  readonly #settings: WebGpuSettings;
  readonly #pool: BufferPool;
  readonly #textures: BufferPool<GPUTexture>;
  readonly #staging: BufferPool;
  readonly #stream: CommandStream;
  readonly #pipelines: PipelineCache;
  readonly #bindGroups: BindGroupCache;
  readonly #errors: DriverErrors;
  readonly #repeats: Repeats;
  /** The callers' kernel variants that have run without an error: by key, the smallest extent of each binding. */
  readonly #proven = new Map<string, readonly number[]>();

  /** Use `openWebGpu`. */
  constructor(gpu: WebGpuType<"GPUDevice">, settings: WebGpuSettings) {
    super();
    this.gpu = gpu;
    this.label = settings.label;
    this.profile = settings.profile;
    this.#settings = settings;
    const usage = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;
    this.#pool = new BufferPool((size) => gpu.createBuffer({ size, usage }), POOL_LIMIT_BYTES);
    this.#textures = new BufferPool((size) => createTexture(gpu, size), TEXTURE_POOL_LIMIT_BYTES);
    const readback = USAGE.MAP_READ | USAGE.COPY_DST;
    this.#staging = new BufferPool(
      (size) => gpu.createBuffer({ size, usage: readback }),
      STAGING_POOL_LIMIT_BYTES,
    );
    this.#stream = new CommandStream(gpu, {
      immediates: settings.immediates,
      afterSubmit: () => {
        this.#pool.trim();
        this.#textures.trim();
      },
    });
    const { uniformLayout } = this.#stream;
    this.#pipelines = new PipelineCache(gpu, { immediates: settings.immediates, uniformLayout });
    this.#bindGroups = new BindGroupCache(gpu, settings.profile);
    this.#errors = new DriverErrors(gpu, settings.label);
    this.#repeats = new Repeats(this, {
      stream: this.#stream,
      take: (handle) => (isTexture(handle) ? this.#textures.take(handle) : this.#pool.take(handle)),
      release: (handle) => this.#release(handle),
      place: ({ shape, dtype, label, category, handle }) =>
        this.place(new Storage(handle.sizeBytes, label, category), shape, dtype, () => handle),
      countFlops: (op, flops) => this.countFlops(op, flops),
    });
  }

  /** Bytes of all buffers and of the free ones, compiled pipelines, and dispatches and submits so far. */
  statistics(): Record<"bufferBytes" | "freeBytes" | "pipelines" | "dispatches" | "submits", number> {
    return {
      bufferBytes: this.#pool.allBytes,
      freeBytes: this.#pool.freeBytes,
      pipelines: this.#pipelines.size,
      ...this.#stream.counts,
    };
  }

  /** Times every kernel until `stopProfile`. Throws `T-PROFILE` if the adapter has no timestamp queries, or kernels are timed already. */
  startProfile(): void {
    this.assertUsable();
    if (!this.gpu.features.has("timestamp-query")) {
      throw new SidenetError(
        "T-PROFILE",
        `${this.label} has no timestamp queries, so kernels cannot be timed on it.`,
      );
    }
    if (this.#stream.isProfiling) {
      throw new SidenetError(
        "T-PROFILE",
        "kernels are timed already, and a second start would lose these times: call stopProfile first.",
      );
    }
    this.#stream.startProfile();
  }

  /** Stops profiling and returns the GPU time by kernel since `startProfile`; none where that was not called. */
  async stopProfile(): Promise<KernelTime[]> {
    super.assertUsable(); // errors of the driver are for waits and ops, and must not leave the profile running
    return this.#orLoss(() => this.#stream.stopProfile());
  }

  protected override async download(tensor: Tensor): Promise<HostArray> {
    const readBytes = sizeBytes(tensor.dtype, tensor.size);
    if (readBytes === 0) return hostArray(tensor.dtype, 0);
    const roundBytes = 2 ** Math.ceil(Math.log2(Math.max(readBytes, 256))); // few sizes, for reuse
    const staging = this.#acquire(this.#staging, {
      sizeBytes: roundBytes > this.profile.maxBufferBytes ? readBytes : roundBytes,
      label: `read of ${tensor}`,
      category: "workspace",
    });
    try {
      return await this.#orLoss(async (settle) => {
        const { gpu } = tensor.storage.handle as PooledBuffer;
        this.#stream.copy(gpu, tensor.offset * elementBytes(tensor.dtype), staging.gpu, readBytes);
        this.#stream.submit();
        await staging.gpu.mapAsync(1, 0, readBytes);
        await settle();
        const bytes = staging.gpu.getMappedRange(0, readBytes).slice(0);
        return fromBytes(bytes, tensor.dtype, tensor.size);
      });
    } finally {
      staging.gpu.unmap();
      this.#staging.release(staging);
      this.#staging.trim();
    }
  }

  /**
   * Runs a wait for the GPU, which calls `settle` for the driver's errors. If it fails because the device is lost, which browsers
   * report later, throws `T-DEVICE-LOST` instead.
   */
  async #orLoss<T>(wait: (settle: () => Promise<void>) => Promise<T>): Promise<T> {
    const settle = this.#errors.begin(() => this.assertUsable());
    try {
      return await wait(settle);
    } catch (error) {
      if (error instanceof SidenetError) throw error;
      await this.#errors.awaitLoss();
      this.assertUsable();
      await settle();
      throw error;
    }
  }

  protected override async finish(): Promise<void> {
    this.#stream.submit();
    await this.#orLoss(async (settle) => {
      await this.gpu.queue.onSubmittedWorkDone();
      await settle();
    });
  }

  protected override close(): void {
    this.gpu.destroy();
  }

  /** Also throws errors that the driver has reported. */
  protected override assertUsable(): void {
    super.assertUsable();
    try {
      this.#errors.throwFirst();
    } catch (error) {
      // Commands that use memory which does not exist would be reported at the next wait, as an error of its own.
      this.#errors.scope(
        "validation",
        () => this.#stream.submit(),
        () => {},
      );
      throw error;
    }
  }

  protected override allocate(storage: Storage): unknown {
    if (storage.sizeBytes > this.profile.maxBufferBytes) {
      throw new SidenetError(
        "T-TOO-LARGE",
        `${storage.label} wants a buffer of ${storage.sizeBytes} bytes, ${this.label} allows ${this.profile.maxBufferBytes}.`,
      );
    }
    const buffer = this.#acquire(this.#pool, storage);
    this.#repeats.recorder?.took(storage, buffer);
    if (this.#settings.poison) this.#poison(buffer);
    return buffer;
  }

  /** A buffer or texture for `request`. If it has to be created and that fails, the next op or wait throws `T-OUT-OF-MEMORY`. */
  #acquire<R extends { destroy(): void }>(pool: BufferPool<R>, request: Allocation): Pooled<R> {
    const free = pool.reuse(request.sizeBytes);
    if (free !== null) return free;
    this.#stream.submit(); // what was encoded before a failure is not lost with it
    pool.trim(request.sizeBytes);
    let made: Pooled<R>;
    return this.#errors.scope(
      "out-of-memory",
      () => {
        made = pool.create(request.sizeBytes);
        return made;
      },
      (error) => {
        if (error === null) return;
        pool.fail(made);
        const why = `the device said: ${error.message}`;
        this.#errors.note("T-OUT-OF-MEMORY", this.memory.explain(request, why));
      },
    );
  }

  protected override deallocate(storage: Storage): void {
    const handle = storage.handle as Handle;
    storage.handle = null;
    this.#repeats.recorder?.freed(storage);
    if (!this.disposed) this.#release(handle);
  }

  #release(handle: Handle): void {
    if (isTexture(handle)) this.#textures.release(handle);
    else this.#pool.release(handle);
  }

  protected override allocateTexture(storage: Storage, tensor: Tensor): unknown {
    const texture = this.#acquire(this.#textures, storage);
    this.#repeats.recorder?.took(storage, texture);
    this.#repeats.recorder?.uses(tensor);
    const bytesPerElement = elementBytes(tensor.dtype);
    const { gpu } = tensor.storage.handle as PooledBuffer;
    this.#stream.copyToTexture(
      gpu,
      tensor.offset * bytesPerElement,
      texture.gpu,
      tensor.size * bytesPerElement,
    );
    return texture;
  }

  protected override write(tensor: Tensor, values: ArrayLike<number>): void {
    this.#repeats.recorder?.uses(tensor);
    const { gpu } = tensor.storage.handle as PooledBuffer;
    if (tensor.size > 0) this.#stream.write(gpu, toBytes(values, tensor.dtype));
  }

  protected override compute({ row, io, dims, attrs }: Execution): void {
    for (const name in row.sources) addKernelSource(name, row.sources[name]);
    const isOurs = isInTable(row); // WGSL of another's row is tried out, and an error of its reported
    const run = (kernel: KernelEntry, call: KernelCall) =>
      isOurs ? this.#dispatch(kernel, call) : this.dispatch(kernel, call);
    withKernelContext(this, row.name, run, (k) => row.kernel(k, io, dims, attrs));
  }

  /** Where two runs under this key issued the same commands, issues these again; not while each op is watched. */
  override repeat<K>(
    call: RepeatCall,
    body: () => ReadonlyMap<K, Tensor>,
    options: { consume?: readonly Tensor[] } = {},
  ): ReadonlyMap<K, Tensor> {
    this.assertUsable();
    const isWatched = this.detectAnomaly || this.onOp !== null || this.memory.onReserve !== null;
    const run = () => this.scope(body);
    return super.repeat(call, () => (isWatched ? run() : this.#repeats.run(call, run)), options);
  }

  /** Uses another tile table from now on: for tuning. */
  retile(tiles: Tiles): void {
    this.assertUsable();
    this.profile = { ...this.profile, tiles };
  }

  /** Adds a kernel of the caller, in the form that kernels/README.md describes. Throws `T-KERNEL`. */
  addKernel(name: string, text: string): void {
    addKernelSource(name, text);
  }

  /**
   * Runs a single kernel outside any op: for benchmarks and kernels of the caller. Throws `T-KERNEL`, `T-DEVICE` and
   * `T-USE-AFTER-FREE`. If the text does not compile or the GPU refuses the call, the next wait rejects with `T-KERNEL`.
   */
  dispatch(kernel: KernelEntry, call: KernelCall): void {
    this.assertUsable();
    const source = kernelSource(kernel.split("/")[0]);
    for (const tensor of checkCall(kernel, call, source)) this.assertOwn(tensor, kernel);
    const key = pipelineKey(kernel, dtypesOf(call), call.consts, call.bodies);
    const proven = this.#proven.get(key);
    if (proven && extentsOf(call).every((extent, i) => extent >= proven[i])) this.#dispatch(kernel, call);
    else this.#tryOut(key, kernel, call, source);
  }

  /** Runs a kernel for the first time, or with less memory than before, in a separate submit: if the GPU refuses it, no other command is lost. */
  #tryOut(key: string, kernel: KernelEntry, call: KernelCall, source: KernelSource): void {
    this.#stream.submit();
    let isRun = false;
    this.#errors.scope(
      "validation",
      () => {
        isRun = this.#dispatch(kernel, call);
        this.#stream.submit();
      },
      (error) => {
        if (error !== null) this.#refuse(key, source, call, error);
        else if (isRun) this.#prove(key, call);
      },
    );
  }

  #prove(key: string, call: KernelCall): void {
    const before = this.#proven.get(key);
    this.#proven.set(
      key,
      extentsOf(call).map((extent, i) => Math.min(extent, before?.[i] ?? extent)),
    );
  }

  #refuse(key: string, { file, bindings }: KernelSource, { bind }: KernelCall, error: GPUError): void {
    this.#pipelines.forget(key);
    this.#bindGroups.clear();
    const message = error.message.trim();
    // A kernel may have bindings that this entry point does not use: the driver says by its number which is missing.
    const unbound = [...bindings].filter(
      ([name, { index }]) => !(name in bind) && new RegExp(`\\bbinding\\W+${index}\\b`).test(message),
    );
    const names = unbound.map(([name]) => name).join(", ");
    const hint = names && `No tensor was bound to ${names}. `;
    this.#errors.note("T-KERNEL", `${file}.wgsl was refused by ${this.label}: ${hint}${message}`);
  }

  /** Dispatches a kernel; returns whether there was anything to run. */
  #dispatch(kernel: KernelEntry, call: KernelCall): boolean {
    const grid = foldGrid(kernel, call.grid, this.profile.maxWorkgroupsPerAxis);
    if (grid === null) return false;
    const pipeline = this.#pipelines.get(kernel, dtypesOf(call), call.consts, call.bodies);
    this.#repeats.recorder?.usesAll(call.bind);
    const params = packParams(pipeline.source, call.params);
    this.#stream.dispatch(pipeline, this.#bindGroups.get(pipeline, call.bind), params, grid);
    return true;
  }

  #poison(buffer: PooledBuffer): void {
    const pipeline = this.#pipelines.get("fill/main", { x: "f32" });
    const vectors = buffer.sizeBytes / 16;
    for (let first = 0; first < vectors; first += this.profile.maxBindingBytes / 16) {
      const count = Math.min(vectors - first, this.profile.maxBindingBytes / 16);
      const resource = { buffer: buffer.gpu, offset: first * 16, size: count * 16 };
      const group = this.gpu.createBindGroup({
        layout: pipeline.layout,
        entries: [{ binding: 0, resource }],
      });
      const params = new Uint8Array(new Uint32Array([count, 0x7fc00000]).buffer); // the bits of NaN
      this.#stream.dispatch(
        pipeline,
        group,
        params,
        foldGrid("fill/main", Math.ceil(count / 256), this.profile.maxWorkgroupsPerAxis)!,
      );
    }
  }
}
