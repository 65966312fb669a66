import type { DType } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { type KernelSource, kernelSource, specialize, type Variant } from "./kernel-source.ts";
import { TEXTURE_FORMAT } from "./textures.ts";

/** A compiled kernel variant. */
export interface Pipeline {
  readonly source: KernelSource;
  readonly gpu: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
  /** Readable and unique: "norm/forward x:f16 LANES=64". */
  readonly key: string;
  /** A short form of the key, for keys of bind groups: every dispatch hashes one. */
  readonly id: number;
}

const COMPUTE_STAGE = 4;

let nextId = 1;

/** The key of a kernel variant: `Pipeline.key`. */
export function pipelineKey(
  kernel: string,
  dtypes: Readonly<Record<string, DType>>,
  consts: Readonly<Record<string, number>> = {},
  bodies: Readonly<Record<string, string>> = {},
): string {
  let key = kernel;
  for (const name in dtypes) key += dtypes[name] === "f32" ? ` ${name}` : ` ${name}:${dtypes[name]}`;
  for (const name in consts) key += ` ${name}=${consts[name]}`;
  for (const name in bodies) key += ` ${name}{${bodies[name]}}`;
  return key;
}

/** Compiled kernels by key. Sizes are not part of it: compiling a pipeline takes seconds on a cold software driver. */
export class PipelineCache {
  readonly #device: GPUDevice;
  readonly #immediates: boolean;
  readonly #uniformLayout: GPUBindGroupLayout | null;
  readonly #pipelines = new Map<string, Pipeline>();
  readonly #modules = new Map<string, GPUShaderModule>();

  constructor(device: GPUDevice, options: { immediates: boolean; uniformLayout: GPUBindGroupLayout | null }) {
    this.#device = device;
    this.#immediates = options.immediates;
    this.#uniformLayout = options.uniformLayout;
  }

  get size(): number {
    return this.#pipelines.size;
  }

  /** `dtypes` has every binding the dispatch uses, by variable name. Throws `T-KERNEL`. */
  get(
    kernel: string,
    dtypes: Readonly<Record<string, DType>>,
    consts: Readonly<Record<string, number>> = {},
    bodies: Readonly<Record<string, string>> = {},
  ): Pipeline {
    const key = pipelineKey(kernel, dtypes, consts, bodies);
    const known = this.#pipelines.get(key);
    if (known) return known;
    const pipeline = this.#compile(key, kernel, { dtypes, consts, bodies, immediates: this.#immediates });
    this.#pipelines.set(key, pipeline);
    return pipeline;
  }

  /** Forgets a variant that did not compile: the next request compiles it again and reports the error again. */
  forget(key: string): void {
    this.#pipelines.delete(key);
    this.#modules.clear(); // compiled pipelines no longer need their modules
  }

  #compile(key: string, kernel: string, variant: Variant): Pipeline {
    const [file = "", entryPoint = ""] = kernel.split("/");
    const source = kernelSource(file);
    const entries = Object.keys(variant.dtypes).map((name): GPUBindGroupLayoutEntry => {
      const binding = source.bindings.get(name);
      if (!binding) {
        const names = [...source.bindings.keys()].join(", ");
        const others = names
          ? `it has ${names}`
          : 'it has none of the form "@group(0) @binding(0) var<storage, read> x: ..."';
        throw new SidenetError("T-KERNEL", `${file}.wgsl has no binding ${name}; ${others}.`);
      }
      const place = { binding: binding.index, visibility: COMPUTE_STAGE };
      if (binding.isTexture)
        return { ...place, storageTexture: { access: "read-only", format: TEXTURE_FORMAT } };
      return { ...place, buffer: { type: binding.writable ? "storage" : "read-only-storage" } };
    });
    const layout = this.#device.createBindGroupLayout({ label: key, entries });
    const bindGroupLayouts = this.#uniformLayout ? [layout, this.#uniformLayout] : [layout];
    const descriptor = this.#immediates
      ? { bindGroupLayouts, immediateSize: source.params.length * 4 }
      : { bindGroupLayouts };
    const gpu = this.#device.createComputePipeline({
      label: key,
      layout: this.#device.createPipelineLayout(descriptor),
      compute: { module: this.#module(specialize(source, variant), file), entryPoint },
    });
    return { source, gpu, layout, key, id: nextId++ };
  }

  /** Entry points of one variant share a module. */
  #module(code: string, label: string): GPUShaderModule {
    const known = this.#modules.get(code);
    if (known) return known;
    const module = this.#device.createShaderModule({ code, label });
    this.#modules.set(code, module);
    return module;
  }
}
