/** The WebAssembly device in Node: its threads, and the V8 flag that Node 20 needs for relaxed SIMD. */
import { availableParallelism } from "node:os";
import { setFlagsFromString } from "node:v8";
import { Worker } from "node:worker_threads";
import { SidenetError } from "../errors.ts";
import type { WasmDevice } from "../wasm/device.ts";
import { hasRelaxedSimd, openWasm, type WasmOptions } from "../wasm/open.ts";
import type { Spawn } from "../wasm/runtime.ts";

/** The code of a worker, as text, since a worker cannot load TypeScript. `module` is a name that Deno and Bun take for themselves. */
const WORKER = `const { parentPort, workerData: { program, memory, index } } = require("node:worker_threads");
const { work } = new WebAssembly.Instance(program, { env: { memory } }).exports;
parentPort.postMessage("ready");
work(index);`;

const spawn: Spawn = (program, memory, index) =>
  new Promise((resolve, reject) => {
    const worker = new Worker(WORKER, { eval: true, workerData: { program, memory, index } });
    worker.once("message", () => {
      worker.unref(); // idle threads do not keep the process alive
      resolve(worker);
    });
    worker.once("error", reject);
    worker.once("exit", (code) => reject(new Error(`a thread ended with code ${code} before it was ready`)));
  });

/** V8 up to 11 (Node 20) has relaxed SIMD behind a flag, which takes effect for modules compiled afterwards. */
function allowRelaxedSimd(): void {
  const [major] = process.versions.v8.split(".").map(Number);
  if (major <= 11 && !hasRelaxedSimd()) setFlagsFromString("--experimental-wasm-relaxed-simd");
}

/** SIDENET_THREADS, or null if it is not set. Throws `T-THREADS` unless it is a whole number above 0. */
function threadsFromEnvironment(): number | null {
  const text = process.env.SIDENET_THREADS;
  if (text === undefined || text === "") return null;
  const threads = Number(text);
  if (Number.isInteger(threads) && threads >= 1) return threads;
  throw new SidenetError(
    "T-THREADS",
    `SIDENET_THREADS is "${text}", wanted a whole number of threads from 1 on.`,
  );
}

/** Opens the WebAssembly device in Node. Throws `T-WASM` or `T-THREADS`. */
export function openNodeWasm(options: WasmOptions = {}): Promise<WasmDevice> {
  allowRelaxedSimd();
  const cores = threadsFromEnvironment() ?? availableParallelism();
  return openWasm({ spawn, cores, mayWait: true }, options);
}
