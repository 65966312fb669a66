import { SidenetError } from "../errors.ts";
import { f32x4, i8x16, type V128 } from "./assembler/instructions.ts";
import { ModuleBuilder } from "./assembler/module.ts";
import { WasmDevice } from "./device.ts";
import { engine } from "./engine.ts";
import { Runtime, type Spawn } from "./runtime.ts";

/** Threads and instructions of a WebAssembly device. */
export interface WasmOptions {
  /** Threads, including the calling one. Default: as many as the machine runs at once. */
  readonly threads?: number;
  /** Use relaxed SIMD, for fused multiply-add. Default: if the engine has it. */
  readonly relaxedSimd?: boolean;
  /** Fill new memory with NaN, so that tests notice a kernel that reads memory before it is written. */
  readonly poison?: boolean;
}

/** What the host (Node, a page or a worker) offers. */
interface WasmHost {
  /** Null if memory cannot be shared between threads: then there is only one. */
  readonly spawn: Spawn | null;
  readonly cores: number;
  /** Whether the calling thread may block. The main thread of a page may not. */
  readonly mayWait: boolean;
}

/** More threads than this gain nothing, and each has scratch of its own. */
const MAX_THREADS = 64;

/** Whether the engine accepts a module with these instructions. */
function validates(use: (zero: V128) => V128): boolean {
  const m = new ModuleBuilder({ shared: false, relaxedSimd: true });
  m.function(0, (f) => f.drop(use(f.v128())));
  return engine.validate(m.finish([]));
}

export const hasSimd = (): boolean => validates((zero) => f32x4.add(zero, zero));

/** Whether the engine has relaxed SIMD: fused multiply-add and the relaxed byte swizzle. */
export const hasRelaxedSimd = (): boolean =>
  validates((zero) => f32x4.relaxedMadd(zero, zero, i8x16.relaxedSwizzle(zero, zero)));

/**
 * Opens the WebAssembly device. Throws `T-WASM` if the engine lacks SIMD, `T-THREADS` if `threads` is not a whole number above 0 or
 * not all of them start.
 */
export async function openWasm(host: WasmHost, options: WasmOptions = {}): Promise<WasmDevice> {
  const { threads = host.cores, relaxedSimd = hasRelaxedSimd(), poison = false } = options;
  if (!(Number.isInteger(threads) && threads >= 1)) {
    throw new SidenetError(
      "T-THREADS",
      `${threads} threads were asked for, wanted a whole number from 1 on.`,
    );
  }
  const runtime = await Runtime.open({
    relaxedSimd,
    threads: Math.min(MAX_THREADS, threads),
    mayWait: host.mayWait,
    spawn: host.spawn,
  });
  return new WasmDevice(runtime, poison);
}
