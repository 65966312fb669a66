/** A device that runs the kernels' WGSL, as JavaScript on the processor: for kernels that need features no test adapter has, such as subgroup matrices. */
import type { DeviceProfile } from "@sidenet/tensor";
import { Device } from "../../src/device.ts";
import { elementBytes, type HostArray } from "../../src/dtype.ts";
import { fromFloat16Bits, toFloat16Bits } from "../../src/float16.ts";
import { withKernelContext } from "../../src/kernel-context.ts";
import type { KernelCall, KernelEntry } from "../../src/op.ts";
import type { Execution } from "../../src/op-call.ts";
import { DEFAULT_PROFILE } from "../../src/profile.ts";
import type { Storage, Tensor } from "../../src/tensor.ts";
import { fromBytes, toBytes } from "../../src/webgpu/host-bytes.ts";
import { dtypesOf, foldGrid } from "../../src/webgpu/kernel-call.ts";
import { kernelSource, specialize } from "../../src/webgpu/kernel-source.ts";
import { pipelineKey } from "../../src/webgpu/pipelines.ts";
import { compile, type Memory, type Program } from "./run.ts";

const NAN_BYTE = 0xff; // in every type of float

/** Memory is full of NaN before it is written. */
export class WgslDevice extends Device {
  override readonly kind = "cpu";
  override readonly label = "WGSL as JavaScript";
  override profile: DeviceProfile;
  /** What was dispatched. */
  readonly calls: { readonly kernel: KernelEntry; readonly call: KernelCall }[] = [];
  readonly #programs = new Map<string, Program>();

  constructor(profile: Partial<DeviceProfile> = {}) {
    super();
    this.profile = { ...DEFAULT_PROFILE, ...profile };
  }

  protected override allocate({ sizeBytes }: Storage): ArrayBuffer {
    const bytes = new Uint8Array(Math.ceil(sizeBytes / 16) * 16);
    bytes.fill(NAN_BYTE);
    return bytes.buffer;
  }
  protected override deallocate(storage: Storage): void {
    storage.handle = null;
  }
  protected override write(tensor: Tensor, values: ArrayLike<number>): void {
    new Uint8Array(tensor.storage.handle as ArrayBuffer).set(toBytes(values, tensor.dtype));
  }
  protected override async download(tensor: Tensor): Promise<HostArray> {
    const start = tensor.offset * elementBytes(tensor.dtype);
    return fromBytes((tensor.storage.handle as ArrayBuffer).slice(start), tensor.dtype, tensor.size);
  }
  protected override async finish(): Promise<void> {}

  protected override compute({ row, io, dims, attrs }: Execution): void {
    withKernelContext(this, row.name, this.dispatch.bind(this), (k) => row.kernel(k, io, dims, attrs));
  }

  dispatch(kernel: KernelEntry, call: KernelCall): void {
    this.calls.push({ kernel, call });
    const program = this.#program(kernel, call);
    const grid = foldGrid(kernel, call.grid, this.profile.maxWorkgroupsPerAxis);
    if (grid === null) return;
    const memory: Record<string, Memory> = {};
    const written: (() => void)[] = [];
    for (const [name, tensor] of Object.entries(call.bind)) {
      const { elem, writable } = program.bindings[name];
      const bytes = tensor ? (tensor.storage.handle as ArrayBuffer) : new ArrayBuffer(16);
      const start = tensor ? tensor.offset * elementBytes(tensor.dtype) : 0;
      const size = tensor ? Math.ceil((tensor.size * elementBytes(tensor.dtype)) / 16) * 16 : 16;
      const end = Math.min(start + size, bytes.byteLength);
      if (elem === "f16") {
        const halves = new Uint16Array(bytes, start, (end - start) / 2);
        const floats = Float32Array.from(halves, fromFloat16Bits);
        memory[name] = floats;
        if (writable) written.push(() => halves.set(Uint16Array.from(floats, toFloat16Bits)));
        continue;
      }
      const View = elem === "f32" ? Float32Array : elem === "i32" ? Int32Array : Uint32Array;
      memory[name] = new View(bytes, start, (end - start) / 4);
    }
    program.run(memory, call.params, grid);
    for (const finish of written) finish();
  }

  #program(kernel: KernelEntry, call: KernelCall): Program {
    const dtypes = dtypesOf(call);
    const key = pipelineKey(kernel, dtypes, call.consts, call.bodies);
    const known = this.#programs.get(key);
    if (known) return known;
    const [file, entry] = kernel.split("/");
    const variant = { dtypes, consts: call.consts ?? {}, bodies: call.bodies ?? {}, immediates: true };
    const program = compile(specialize(kernelSource(file), variant), entry);
    this.#programs.set(key, program);
    return program;
  }
}
