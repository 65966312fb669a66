import type { Device } from "../device.ts";
import type { RowRange } from "../op.ts";
import type { Shape } from "../shape.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { KernelName } from "./kernels/index.ts";

/** How a call is split into tasks, which are parts of the output and do not depend on the number of threads. */
export interface Tasks {
  readonly tasks: number;
  /** Rough time of the whole call in nanoseconds on one thread: short calls do not wake other threads. */
  readonly work: number;
}

/** A place within a tensor. */
interface At {
  readonly tensor: Tensor;
  readonly byte: number;
}

/** Arguments by name: numbers, or tensors and places in them, which stand for their addresses. Null and false are 0. */
export type KernelArgs = Readonly<Record<string, number | boolean | Tensor | At | null>>;

/** Runs an op by kernels on operands of which none is empty, or does nothing and returns false if the kernels do not support them. */
// biome-ignore lint/suspicious/noExplicitAny: operands and attributes differ by row; each op names its own
export type WasmOp = (k: WasmContext, io: any, dims: Dims, attrs: any) => boolean;

/**
 * What the host code of an op can do: run kernels, and get workspace and views. It is the same for all ops of a device, one after
 * the other: `release` after each frees its workspace and views.
 */
export class WasmContext {
  /** Rows of a left panel of matmuls (kernels/library.ts). */
  readonly panelRows: number;
  readonly run: (kernel: KernelName, args: KernelArgs, tasks: Tasks) => void;
  /** The current op, for labels of its workspace. */
  op = "";
  readonly #device: Device;
  readonly #handles: Tensor[] = [];

  constructor(device: Device, run: WasmContext["run"]) {
    this.#device = device;
    this.panelRows = device.profile.wasm?.panelRows ?? 1;
    this.run = run;
  }

  /** Workspace of f32 that is freed when the op returns. Its contents are undefined. */
  temp(shape: Shape): Tensor {
    const tensor = this.#device.empty(shape, { label: `${this.op}, workspace` });
    this.#device.keep(tensor);
    this.#handles.push(tensor);
    return tensor;
  }

  /** Frees the workspace that `body` made when it returns: an op which works in chunks holds that of one chunk only. */
  scope(body: () => void): void {
    const first = this.#handles.length;
    body();
    this.#dispose(first);
  }

  /** Rows `start .. start + count` of a tensor seen as [rows, ...], sharing its memory. */
  rows(tensor: Tensor, rows: number, { start, count }: RowRange): Tensor {
    if (start === 0 && count === rows) return tensor;
    const row = tensor.size / rows;
    const window = this.#device.alias(tensor, [count, row], tensor.offset + start * row);
    this.#handles.push(window);
    return window;
  }

  release(): void {
    this.#dispose(0);
  }

  #dispose(first: number): void {
    for (const tensor of this.#handles.splice(first)) tensor.dispose(`${this.op}, which has used it`);
  }
}
