import { firstNonFinite, type NonFinite } from "../anomaly.ts";
import { Device } from "../device.ts";
import { type HostArray, hostArray, isFloat } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { roundToFloat16 } from "../float16.ts";
import { nextTask } from "../next-task.ts";
import type { Execution } from "../op-call.ts";
import { DEFAULT_PROFILE } from "../profile.ts";
import { runReference } from "../reference.ts";
import type { Storage, Tensor } from "../tensor.ts";

/**
 * `f32`: values are rounded to their dtype after each op, as on any device.
 * `f64`: values are not rounded, so that gradients can be checked by finite differences; except by ops whose results are defined
 * to the bit in f32: decoded NF4 weights, 8-bit moments, random choices.
 */
export type CpuPrecision = "f32" | "f64";

/** Values of one storage, f16 widened to f32. */
interface CpuMemory {
  values: HostArray;
}

/**
 * The reference device: every op runs the plain loops of its row in double. It is slow, serves as the standard for all other
 * devices, and runs where there is no adapter.
 */
export class CpuDevice extends Device {
  override readonly kind = "cpu";
  override readonly label: string;
  override readonly profile = {
    ...DEFAULT_PROFILE,
    adapterClass: "software" as const,
    maxBindingBytes: 2 ** 32,
    maxBufferBytes: 2 ** 32,
    reference: true,
  };
  readonly #double: boolean;

  /** Throws `T-VALUE` for an unknown precision. */
  constructor({ precision = "f32" }: { precision?: CpuPrecision } = {}) {
    super();
    if (precision !== "f32" && precision !== "f64") {
      throw new SidenetError(
        "T-VALUE",
        `there is no precision "${precision}" of the CPU device, only f32 and f64.`,
      );
    }
    this.#double = precision === "f64";
    this.label = this.#double ? "CPU reference in double" : "CPU reference";
  }

  /** The array is allocated at the first write, when the dtype of the tensor is known. */
  protected override allocate(): CpuMemory {
    return { values: new Uint8Array(0) };
  }

  protected override deallocate(storage: Storage): void {
    storage.handle = null;
  }

  protected override write(tensor: Tensor, values: ArrayLike<number>): void {
    const memory = tensor.storage.handle as CpuMemory;
    const stored = this.#blank(tensor);
    if (tensor.dtype === "f16" && !this.#double)
      for (let i = 0; i < stored.length; i++) stored[i] = roundToFloat16(values[i]);
    else stored.set(values);
    memory.values = stored;
  }

  protected override async download(tensor: Tensor): Promise<HostArray> {
    const stored = this.#values(tensor);
    const values = isFloat(tensor.dtype) && !this.#double ? Float32Array.from(stored) : stored.slice();
    await nextTask();
    return values;
  }

  protected override finish(): Promise<void> {
    return nextTask();
  }

  /** Finds it immediately, without a copy. */
  protected override async findNonFinite(tensor: Tensor): Promise<NonFinite | null> {
    return firstNonFinite(this.#values(tensor));
  }

  protected override compute(execution: Execution): void {
    runReference(execution, {
      load: (tensor) => this.#values(tensor),
      store: (tensor, values) => this.write(tensor, values),
    });
  }

  /** The values of a tensor, without a copy. Memory that was never written reads as NaN or the largest integer. */
  #values(tensor: Tensor): HostArray {
    const memory = tensor.storage.handle as CpuMemory;
    if (memory.values.length === 0 && tensor.size > 0) {
      memory.values = this.#blank(tensor);
      memory.values.fill(isFloat(tensor.dtype) ? Number.NaN : -1);
    }
    return memory.values;
  }

  /** Throws `T-OUT-OF-MEMORY` if the process has no more memory. */
  #blank({ dtype, size, storage }: Tensor): HostArray {
    try {
      return this.#double && isFloat(dtype) ? new Float64Array(size) : hostArray(dtype, size);
    } catch (cause) {
      throw new SidenetError("T-OUT-OF-MEMORY", this.memory.explain(storage, "the process has no more"), {
        cause,
      });
    }
  }
}
