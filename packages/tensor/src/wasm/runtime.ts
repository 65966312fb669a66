import { elementBytes } from "../dtype.ts";
import { SidenetError } from "../errors.ts";
import { Tensor } from "../tensor.ts";
import { MAX_PAGES, type ModuleOptions } from "./assembler/module.ts";
import type { KernelArgs, Tasks } from "./context.ts";
import { engine, type Memory, type Module } from "./engine.ts";
import { Heap } from "./heap.ts";
import { type KernelName, kernelNames, kernels } from "./kernels/index.ts";
import { panelRowsOf } from "./kernels/library.ts";
import { ARGS, CONTROL, heapStart } from "./layout.ts";
import { emitProgram } from "./program.ts";

const PAGE_BYTES = 65536;
/** Memory after the last tensor: kernels may read past the end of a tensor, and ignore what they read. */
const MARGIN_BYTES = 256;
/** Calls of less work than this run on the calling thread alone: waking the others would take as long. */
const MIN_SHARED_NS = 12_000;

/** A thread that runs the function `work` of the module. */
interface Worker {
  terminate(): unknown;
}

/** Starts thread `index` and resolves when it runs. */
export type Spawn = (module: Module, memory: Memory, index: number) => Promise<Worker>;

interface Exports {
  readonly run: () => void;
  readonly dispatch?: (mayWait: number) => void;
}

/** A kernel's index in the function table, and its arguments in the order of their words in memory. */
interface CallLayout {
  readonly index: number;
  readonly params: readonly (readonly [name: string, isFloat: boolean])[];
}

/** Bytes of memory, total and free; dispatches, and how many of them were shared between threads. */
export interface WasmStatistics {
  readonly memoryBytes: number;
  readonly freeBytes: number;
  readonly dispatches: number;
  readonly shared: number;
}

/** One linear memory, the module over it, and its threads. */
export class Runtime {
  readonly memory: Memory;
  readonly heap: Heap;
  readonly threads: number;
  readonly relaxedSimd: boolean;
  readonly panelRows: number;
  readonly #exports: Exports;
  readonly #mayWait: number;
  readonly #layouts: ReadonlyMap<KernelName, CallLayout>;
  #workers: readonly Worker[] = [];
  #words: Int32Array;
  #floats: Float32Array;
  /** The last attempt to grow the memory failed because 32 bits address no more. */
  #isAtLimit = false;
  #counts = { dispatches: 0, shared: 0 };

  private constructor(
    module: Module,
    memory: Memory,
    { threads, relaxedSimd, mayWait }: { threads: number; relaxedSimd: boolean; mayWait: boolean },
  ) {
    this.memory = memory;
    this.threads = threads;
    this.relaxedSimd = relaxedSimd;
    this.panelRows = panelRowsOf({ relaxedSimd });
    this.#mayWait = Number(mayWait);
    this.#exports = new engine.Instance(module, { env: { memory } }).exports as unknown as Exports;
    this.heap = new Heap(heapStart(threads), (endBytes) => this.#reach(endBytes));
    this.#layouts = new Map(kernelNames.map((name, index) => [name, { index, params: paramsOf(name) }]));
    [this.#words, this.#floats] = [new Int32Array(memory.buffer), new Float32Array(memory.buffer)];
  }

  /** Throws `T-WASM` if the engine cannot compile the module, `T-THREADS` if the threads do not start. */
  static async open(
    options: Pick<ModuleOptions, "relaxedSimd"> & { threads: number; mayWait: boolean; spawn: Spawn | null },
  ): Promise<Runtime> {
    const shared = options.threads > 1 && options.spawn !== null;
    const threads = shared ? options.threads : 1;
    try {
      const initial = Math.ceil((heapStart(threads) + MARGIN_BYTES) / PAGE_BYTES);
      const memory = reserveMemory(initial, shared);
      const module = await engine.compile(emitProgram({ shared, relaxedSimd: options.relaxedSimd }));
      const runtime = new Runtime(module, memory, { ...options, threads });
      if (shared) await runtime.#start((index) => options.spawn!(module, memory, index));
      return runtime;
    } catch (cause) {
      if (cause instanceof SidenetError) throw cause;
      throw new SidenetError(
        "T-WASM",
        `WebAssembly with SIMD${shared ? " and shared memory" : ""} does not run here: ${messageOf(cause)}. Use --device cpu.`,
        { cause },
      );
    }
  }

  /** Starts all threads, or ends those that did start. */
  async #start(spawn: (index: number) => Promise<Worker>): Promise<void> {
    const wanted = this.threads - 1;
    const starts = await Promise.allSettled(Array.from({ length: wanted }, (_, i) => spawn(i + 1)));
    this.#workers = starts.flatMap((start) => (start.status === "fulfilled" ? [start.value] : []));
    const failed = starts.find((start) => start.status === "rejected");
    if (failed === undefined) return;
    const started = this.#workers.length;
    this.dispose();
    throw new SidenetError(
      "T-THREADS",
      `${started} of ${wanted} further threads started: ${messageOf(failed.reason)}. Ask for fewer, by SIDENET_THREADS=1 or ` +
        "`threads`, or raise the limit on processes (`ulimit -u`).",
      { cause: failed.reason },
    );
  }

  statistics(): WasmStatistics {
    return { memoryBytes: this.heap.allBytes, freeBytes: this.heap.freeBytes, ...this.#counts };
  }

  /** The reason that the memory did not grow, for an error message. */
  whyFull(): string {
    const mib = (bytes: number) => `${(bytes / 2 ** 20).toFixed(0)} MiB`;
    if (!this.#isAtLimit) return "the system gives this process no more memory";
    return (
      `WebAssembly memory is limited to 4 GiB, of which ${mib(this.heap.freeBytes)} are free but fragmented; ` +
      "--device webgpu and the slow --device cpu have no such limit"
    );
  }

  /** A view of memory as f32. */
  f32(address: number, length: number): Float32Array {
    return new Float32Array(this.memory.buffer, address, length);
  }

  /** Runs a kernel and returns when it is finished. */
  run(name: KernelName, args: KernelArgs, { tasks, work }: Tasks): void {
    const { index, params } = this.#layouts.get(name)!;
    this.#writeArgs(name, params, args);
    this.#words[CONTROL.kernel / 4] = index;
    this.#words[CONTROL.tasks / 4] = tasks;
    this.#counts.dispatches++;
    if (this.#exports.dispatch && tasks > 1 && work > MIN_SHARED_NS) {
      this.#counts.shared++;
      this.#exports.dispatch(this.#mayWait);
    } else this.#exports.run();
  }

  #writeArgs(name: KernelName, params: CallLayout["params"], args: KernelArgs): void {
    for (let i = 0; i < params.length; i++) {
      const [param, isFloat] = params[i];
      const arg = args[param];
      if (arg === undefined) throw new SidenetError("T-KERNEL", `${name}: argument ${param} is missing.`);
      const word = ARGS / 4 + i;
      if (isFloat) this.#floats[word] = Number(arg);
      else this.#words[word] = wordOf(arg);
    }
  }

  /** Ends the threads. */
  dispose(): void {
    if (this.#workers.length > 0) {
      Atomics.store(this.#words, CONTROL.quit / 4, 1);
      Atomics.add(this.#words, CONTROL.generation / 4, 1);
      Atomics.notify(this.#words, CONTROL.generation / 4);
    }
    for (const worker of this.#workers) void worker.terminate();
    this.#workers = [];
  }

  #reach(endBytes: number): boolean {
    const wanted = Math.ceil((endBytes + MARGIN_BYTES) / PAGE_BYTES);
    const now = this.memory.buffer.byteLength / PAGE_BYTES;
    if (wanted <= now) return true;
    this.#isAtLimit = wanted > MAX_PAGES;
    if (this.#isAtLimit) return false;
    // Grows by an eighth more than asked for if possible, since each growth makes all views anew.
    for (const target of [Math.min(MAX_PAGES, Math.ceil(wanted * 1.125)), wanted]) {
      try {
        this.memory.grow(target - now);
        this.#words = new Int32Array(this.memory.buffer);
        this.#floats = new Float32Array(this.memory.buffer);
        return true;
      } catch (error) {
        if (!(error instanceof RangeError)) throw error;
      }
    }
    return false;
  }
}

const messageOf = (cause: unknown): string => (cause instanceof Error ? cause.message : String(cause));

/** A memory that can grow to all that 32 bits address. Throws `T-WASM`. */
function reserveMemory(initial: number, shared: boolean): Memory {
  try {
    return new engine.Memory({ initial, maximum: MAX_PAGES, shared });
  } catch (cause) {
    throw new SidenetError(
      "T-WASM",
      `WebAssembly needs some 10 GiB of addresses for its memory, however little of it is used: ${messageOf(cause)}. Raise ` +
        "the limit on addresses (`ulimit -v`), or use --device cpu.",
      { cause },
    );
  }
}

const paramsOf = (name: KernelName): [string, boolean][] =>
  Object.entries(kernels[name].params).map(([param, type]) => [param, type === "f32"]);

function wordOf(arg: KernelArgs[string]): number {
  if (typeof arg === "number") return arg;
  if (arg instanceof Tensor) return addressOf(arg);
  if (arg === null || typeof arg === "boolean") return Number(arg);
  return addressOf(arg.tensor) + arg.byte;
}

const addressOf = ({ storage, offset, dtype }: Tensor): number =>
  (storage.handle as number) + offset * elementBytes(dtype);
