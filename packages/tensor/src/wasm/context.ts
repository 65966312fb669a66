import type { Device } from "../device.ts";
import type { RowRange } from "../op.ts";
import type { Shape } from "../shape.ts";
import type { Dims } from "../signature.ts";
import type { Tensor } from "../tensor.ts";
import type { KernelName } from "./kernels/index.ts";

/** How a call is split: tasks are parts of the output, the same whatever the number of threads. */
export interface Tasks {
  readonly tasks: number;
  /** Rough time of the whole call in nanoseconds on one thread: short calls wake nobody. */
  readonly work: number;
}

/** Arguments by name: numbers, or tensors for their addresses. Null and false are 0. */
export type KernelArgs = Readonly<Record<string, number | boolean | Tensor | null>>;

/** What the WebAssembly side of an op may do. */
export interface WasmContext {
  /** Rows of a panel of the left operand of products (kernels/library.ts). */
  readonly panelRows: number;
  run(kernel: KernelName, args: KernelArgs, tasks: Tasks): void;
  /** Workspace that is freed when the op returns. Contents are undefined. */
  temp(shape: Shape): Tensor;
  /** Frees workspace before the op returns, so that one which works in chunks holds that of one chunk. */
  drop(temp: Tensor): void;
  /** Rows `start .. start + count` of a tensor seen as [rows, ...], sharing its memory. */
  rows(tensor: Tensor, rows: number, range: RowRange): Tensor;
}

/** Runs an op by kernels, or returns false, having done nothing, for operands that they do not take. */
// biome-ignore lint/suspicious/noExplicitAny: operands and attributes differ by row; each op names its own
export type WasmOp = (k: WasmContext, io: any, dims: Dims, attrs: any) => boolean;

/** What the ops of one device get, one after the other: `release` after each frees its workspace and windows. */
export class OpContext implements WasmContext {
  readonly panelRows: number;
  readonly run: WasmContext["run"];
  /** The op at work, for names. */
  op = "";
  readonly #device: Device;
  readonly #handles: Tensor[] = [];

  constructor(device: Device, run: WasmContext["run"]) {
    this.#device = device;
    this.panelRows = device.profile.wasm?.panelRows ?? 1;
    this.run = run;
  }

  temp(shape: Shape): Tensor {
    const tensor = this.#device.empty(shape, { label: `${this.op}, workspace` });
    this.#device.keep(tensor);
    this.#handles.push(tensor);
    return tensor;
  }

  drop(temp: Tensor): void {
    this.#handles.splice(this.#handles.lastIndexOf(temp), 1);
    temp.dispose(`${this.op}, which has used it`);
  }

  rows(tensor: Tensor, rows: number, { start, count }: RowRange): Tensor {
    const row = tensor.size / Math.max(rows, 1);
    const window = this.#device.alias(tensor, [count, row], tensor.offset + start * row);
    this.#handles.push(window);
    return window;
  }

  release(): void {
    for (const tensor of this.#handles) tensor.dispose(`the end of ${this.op}`);
    this.#handles.length = 0;
  }
}
