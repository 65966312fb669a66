import { elementBytes } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import type { KernelCall } from "../op.ts";
import type { DeviceProfile } from "../profile.ts";
import type { Tensor } from "../tensor.ts";
import { type PooledBuffer, type PooledTexture, USAGE } from "./buffer-pool.ts";
import type { Pipeline } from "./pipelines.ts";
import { isTexture } from "./textures.ts";

/** Several steps of different lengths: one of QLoRA on a 7B model has some 7,000. */
const GROUP_LIMIT = 32768;

/** Size of the buffer that is bound in place of absent operands. */
export const EMPTY_BYTES = 256;

type Limits = Pick<DeviceProfile, "maxBindingBytes" | "bindingAlignment">;

/** The bytes of a buffer that a tensor occupies. */
interface BufferWindow {
  readonly offset: number;
  readonly size: number;
}

/** The window of a tensor, rounded up to whole vec4s, which every storage has room for. */
function windowOf({ dtype, offset, size }: Tensor, buffer: PooledBuffer): BufferWindow {
  const start = offset * elementBytes(dtype);
  const vectors = Math.ceil((size * elementBytes(dtype)) / 16) * 16 || 16;
  return { offset: start, size: Math.min(vectors, buffer.sizeBytes - start) };
}

/**
 * Caches bind groups by pipeline and bindings. They repeat, since every training step gets the same buffers from the pool. Those of
 * a destroyed buffer hold none of its memory and are never asked for again, as ids are unique: they go when the cache is full.
 */
export class BindGroupCache {
  readonly #gpu: GPUDevice;
  readonly #limits: Limits;
  readonly #groups = new Map<string, GPUBindGroup>();
  /** Bound in place of absent operands. */
  readonly #nothing: GPUBuffer;

  constructor(gpu: GPUDevice, limits: Limits) {
    this.#gpu = gpu;
    this.#limits = limits;
    this.#nothing = gpu.createBuffer({ size: EMPTY_BYTES, usage: USAGE.STORAGE });
  }

  /** Throws `T-TOO-LARGE` for a tensor that does not fit a binding. */
  get(pipeline: Pipeline, bind: KernelCall["bind"]): GPUBindGroup {
    let key = `${pipeline.id}`;
    for (const name in bind) key += this.#keyOf(pipeline, name, bind[name]);
    const known = this.#groups.get(key);
    if (known) return known;
    const group = this.#gpu.createBindGroup({
      layout: pipeline.layout,
      entries: Object.entries(bind).map(([name, tensor]) => ({
        binding: pipeline.source.bindings.get(name)!.index,
        resource: this.#resourceOf(tensor),
      })),
    });
    if (this.#groups.size >= GROUP_LIMIT) this.#groups.clear();
    this.#groups.set(key, group);
    return group;
  }

  clear(): void {
    this.#groups.clear();
  }

  #keyOf(pipeline: Pipeline, name: string, tensor: Tensor | null): string {
    if (tensor === null) return "|-";
    const handle = tensor.storage.handle as PooledBuffer | PooledTexture;
    if (isTexture(handle)) return `|${handle.id}:`;
    const { offset, size } = windowOf(tensor, handle);
    const { maxBindingBytes, bindingAlignment } = this.#limits;
    if (size <= maxBindingBytes && offset % bindingAlignment === 0) return `|${handle.id}:${offset}:${size}`;
    throw new SidenetError(
      "T-TOO-LARGE",
      `${pipeline.key}: ${name} (${tensor}) binds ${size} bytes at ${offset}; this adapter binds at most ` +
        `${maxBindingBytes}, at multiples of ${bindingAlignment}. The op has to split it (KernelContext.split).`,
    );
  }

  #resourceOf(tensor: Tensor | null): GPUBindingResource {
    if (tensor === null) return { buffer: this.#nothing };
    const handle = tensor.storage.handle as PooledBuffer | PooledTexture;
    return isTexture(handle) ? handle.gpu.createView() : { buffer: handle.gpu, ...windowOf(tensor, handle) };
  }
}
