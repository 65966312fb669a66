import { openWebGpu, type WebGpuDevice } from "@sidenet/tensor";
import { installWebGpuGlobals } from "@sidenet/tensor/node";

const MIB = 2 ** 20;

/** `target` with some members replaced; methods keep their object, as Dawn's ask for. */
function wrap<T extends object>(target: T, members: Partial<Record<keyof T, unknown>>): T {
  return new Proxy(target, {
    get(_, key) {
      if (key in members) return members[key as keyof T];
      const value = Reflect.get(target, key);
      return typeof value === "function" ? value.bind(target) : value;
    },
    set: (_, key, value) => Reflect.set(target, key, value),
  });
}

/** Memory of a GPU whose driver has a fixed amount: the buffers beyond it are invalid, and reported as WebGPU does. */
class Budget {
  limitBytes = Number.POSITIVE_INFINITY;
  #usedBytes = 0;
  /** Whether a buffer of each open error scope failed. */
  readonly #scopes: boolean[] = [];

  over(gpu: GPUDevice): GPUDevice {
    return wrap(gpu, {
      createBuffer: (descriptor: GPUBufferDescriptor) => this.#create(gpu, descriptor),
      pushErrorScope: (filter: GPUErrorFilter) => {
        gpu.pushErrorScope(filter);
        this.#scopes.push(false);
      },
      popErrorScope: async () => {
        const failed = this.#scopes.pop();
        const error = await gpu.popErrorScope();
        return failed ? { message: "the driver has no memory left" } : error;
      },
    });
  }

  #create(gpu: GPUDevice, descriptor: GPUBufferDescriptor): GPUBuffer {
    if (this.#usedBytes + descriptor.size > this.limitBytes) {
      this.#scopes[this.#scopes.length - 1] = true;
      gpu.pushErrorScope("validation");
      const invalid = gpu.createBuffer({ ...descriptor, size: 2 ** 40 });
      void gpu.popErrorScope();
      return invalid;
    }
    const buffer = gpu.createBuffer(descriptor);
    this.#usedBytes += descriptor.size;
    const destroy = buffer.destroy.bind(buffer);
    buffer.destroy = () => {
      this.#usedBytes -= descriptor.size;
      return destroy();
    };
    return buffer;
  }
}

/** The test machine's adapter with smaller buffers, or with `limit(mib)` to give it little memory from then on. */
export async function openSmallGpu(
  options: { maxBufferMib?: number } = {},
): Promise<{ gpu: WebGpuDevice; limit: (mib: number) => void }> {
  await installWebGpuGlobals();
  const { gpu: dawn } = (globalThis as unknown as { navigator: { gpu: GPU } }).navigator;
  const budget = new Budget();
  const requestAdapter = async (wanted: GPURequestAdapterOptions) => {
    const adapter = (await dawn.requestAdapter(wanted))!;
    const maxBufferSize = (options.maxBufferMib ?? 1024) * MIB;
    return wrap(adapter, {
      limits: wrap(adapter.limits, { maxBufferSize }),
      requestDevice: async (descriptor: GPUDeviceDescriptor) =>
        budget.over(await adapter.requestDevice(descriptor)),
    });
  };
  const gpu = await openWebGpu(wrap(dawn, { requestAdapter }));
  return {
    gpu,
    limit: (mib) => {
      budget.limitBytes = mib * MIB;
    },
  };
}
