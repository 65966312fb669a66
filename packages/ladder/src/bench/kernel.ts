/** Times a user's kernel. */
import {
  type DType,
  isFloat,
  SidenetError,
  sizeBytes,
  type Tensor,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { type BenchResult, timeCall } from "./measure.ts";
import { makeOperand } from "./operands.ts";

export interface KernelBuffer {
  readonly name: string;
  readonly elements: number;
  readonly dtype: DType;
}

export interface KernelBench {
  /** The file's name without folder and extension. */
  readonly name: string;
  /** WGSL by the rules of kernels/README.md; `Params` may be left out. */
  readonly text: string;
  readonly entry: string;
  /** Workgroups. */
  readonly grid: readonly [number, number, number];
  /** One for each binding, by the name of its variable. */
  readonly buffers: readonly KernelBuffer[];
  readonly params: Readonly<Record<string, number>>;
  /** Operations of one call; 0 if unknown. */
  readonly flops: number;
}

/**
 * Times a kernel on buffers that are filled with normal numbers, or with integers below the buffer's length. Its result is not
 * checked. Throws `L-KERNEL` if the text breaks the rules, does not compile or does not match the buffers, and what the device
 * throws.
 */
export async function measureKernel(
  device: WebGpuDevice,
  kernel: KernelBench,
  timeMs: number,
): Promise<BenchResult> {
  const { name, entry, grid, params, flops } = kernel;
  const id = `user-${name}`;
  const bind: Record<string, Tensor> = {};
  try {
    device.addKernel(id, kernel.text);
    let bytes = 0;
    for (const [i, { name: buffer, elements, dtype }] of kernel.buffers.entries()) {
      const fill = isFloat(dtype)
        ? ({ kind: "normal" } as const)
        : ({ kind: "ids", below: elements } as const);
      bind[buffer] = makeOperand(device, buffer, { shape: [elements], dtype, fill }, i);
      bytes += sizeBytes(dtype, elements);
    }
    const call = () => device.dispatch(`${id}/${entry}`, { bind, params, grid });
    call();
    await device.synchronize(); // throws errors of the kernel
    return await timeCall(
      device,
      { name: `kernel ${name} ${entry}`, op: "kernel", call, flops, bytes },
      timeMs,
    );
  } catch (error) {
    if (!(error instanceof SidenetError)) throw error;
    const code = error.code === "T-KERNEL" ? "L-KERNEL" : error.code;
    throw new SidenetError(code, error.text.replaceAll(id, name), { cause: error });
  } finally {
    for (const tensor of Object.values(bind)) tensor.dispose();
  }
}
