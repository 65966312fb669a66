import { SidenetError } from "../errors.ts";
import { f32x4, i8x16, type V128 } from "./assembler/instructions.ts";
import { ModuleBuilder } from "./assembler/module.ts";
import { WasmDevice } from "./device.ts";
import { engine } from "./engine.ts";
import { Runtime, type Spawn } from "./runtime.ts";

/** Threads and instructions of a WebAssembly device. */
export interface WasmOptions {
  /** Threads, the calling one included. Default: as many as the machine runs at once. */
  readonly threads?: number;
  /** Fused multiply-add of relaxed SIMD: by default where the engine has it. */
  readonly relaxedSimd?: boolean;
  /** Fill new memory with NaN, so that a kernel which reads what nobody wrote is found. For tests. */
  readonly poison?: boolean;
}

/** What the surroundings offer. */
export interface WasmHost {
  /** Null where memory cannot be shared: then there is one thread. */
  readonly spawn: Spawn | null;
  readonly cores: number;
  /** The calling thread may sleep. A page's may not. */
  readonly mayWait: boolean;
}

/** Past this, two threads more bring nothing, and each has memory of its own. */
const MOST_THREADS = 64;

/** Whether the engine takes a module that uses a vector in this way. */
function validates(use: (zero: V128) => V128): boolean {
  const m = new ModuleBuilder({ shared: false, relaxedSimd: true });
  m.function(0, (f) => f.drop(use(f.v128())));
  return engine.validate(m.finish([]));
}

export const hasSimd = (): boolean => validates((zero) => f32x4.add(zero, zero));

/** Whether the engine has fused multiply-add, and what comes with it. */
export const hasRelaxedSimd = (): boolean =>
  validates((zero) => f32x4.relaxedMadd(zero, zero, i8x16.relaxedSwizzle(zero, zero)));

/** Opens the WebAssembly device. Throws `T-WASM` where the engine lacks SIMD, `T-THREADS` for a number that is none. */
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
    threads: Math.min(MOST_THREADS, threads),
    mayWait: host.mayWait,
    spawn: host.spawn,
  });
  return new WasmDevice(runtime, poison);
}
