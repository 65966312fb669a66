/** The WebAssembly device in a page or in a worker; its threads are workers, which need a cross-origin-isolated page. */
import type { WasmDevice } from "./device.ts";
import { openWasm, type WasmOptions } from "./open.ts";
import type { Spawn } from "./runtime.ts";

/** The code of a worker, as text, so that bundlers need no file for it. */
const WORKER = `onmessage = ({ data: { module, memory, index } }) => {
  const { work } = new WebAssembly.Instance(module, { env: { memory } }).exports;
  postMessage("ready");
  work(index);
};`;

/** The likely cause where a browser gives none, as for a worker that it does not start. */
const REFUSED =
  "the browser starts no worker from a blob, which a Content-Security-Policy has to allow (worker-src blob:)";

/** Types of a page that those of Node lack. */
interface PageWorker {
  onmessage: ((event: unknown) => void) | null;
  onerror: ((event: { message?: string }) => void) | null;
  postMessage(message: unknown): void;
  terminate(): void;
}
interface Page {
  readonly crossOriginIsolated?: boolean;
  /** Undefined in a worker. */
  readonly document?: object;
  readonly navigator?: { readonly hardwareConcurrency?: number };
  readonly Worker?: new (url: string) => PageWorker;
}

const spawnIn =
  (Worker: new (url: string) => PageWorker): Spawn =>
  (module, memory, index) =>
    new Promise((resolve, reject) => {
      const url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
      const worker = new Worker(url);
      const settle = (done: () => void) => {
        URL.revokeObjectURL(url);
        done();
      };
      worker.onmessage = () => settle(() => resolve(worker));
      worker.onerror = ({ message = REFUSED }) => settle(() => reject(new Error(message)));
      worker.postMessage({ module, memory, index });
    });

/**
 * Opens the WebAssembly device in a page or in a worker. Threads need a cross-origin-isolated page (headers
 * `Cross-Origin-Opener-Policy: same-origin` and `Cross-Origin-Embedder-Policy: require-corp`); elsewhere there is one.
 * A Content-Security-Policy has to allow WebAssembly (`script-src 'wasm-unsafe-eval'`) and, for threads, `worker-src blob:`.
 * Throws `T-WASM` where the browser lacks SIMD or refuses WebAssembly, `T-THREADS` where threads do not start.
 */
export function openBrowserWasm(options: WasmOptions = {}): Promise<WasmDevice> {
  const page = globalThis as Page;
  const shares = page.crossOriginIsolated === true && page.Worker !== undefined;
  return openWasm(
    {
      spawn: shares ? spawnIn(page.Worker!) : null,
      cores: page.navigator?.hardwareConcurrency ?? 1,
      mayWait: page.document === undefined,
    },
    options,
  );
}
