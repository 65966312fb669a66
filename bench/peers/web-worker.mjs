// The web's Worker on top of Node's worker_threads, which jax-js needs for its threads.

import { resolveObjectURL } from "node:buffer";
import { Worker as NodeWorker } from "node:worker_threads";

const PRELUDE = `const { parentPort } = require("node:worker_threads");
globalThis.self = globalThis;
globalThis.postMessage = (message) => parentPort.postMessage(message);
parentPort.on("message", (data) => globalThis.onmessage?.({ data }));
`;

class PageWorker {
  onmessage = null;
  onerror = null;
  #worker = null;
  #waiting = [];

  constructor(url) {
    // Reading the blob is asynchronous; messages wait until the worker has started.
    resolveObjectURL(url)
      .text()
      .then((source) => {
        this.#worker = new NodeWorker(PRELUDE + source, { eval: true });
        this.#worker.on("message", (data) => this.onmessage?.({ data }));
        this.#worker.on("error", (error) => this.onerror?.({ message: error.message }));
        for (const message of this.#waiting) this.#worker.postMessage(message);
      });
  }

  postMessage(message) {
    if (this.#worker) this.#worker.postMessage(message);
    else this.#waiting.push(message);
  }

  terminate() {
    void this.#worker?.terminate();
  }
}

/** Sets the globals `Worker` and `navigator.hardwareConcurrency`, as in a page. */
export function installPageWorker(threads) {
  globalThis.Worker = PageWorker;
  Object.defineProperty(globalThis, "navigator", {
    value: { hardwareConcurrency: threads },
    configurable: true,
  });
}
