/**
 * Resolves once the tasks that wait for this thread, such as timers, requests and messages, had their turn. A device that
 * computes in this thread resolves its reads so: with promises alone a long run would keep them waiting until its end.
 */
export const nextTask = (): Promise<void> =>
  new Promise((resolve) => {
    const { setImmediate: inNode } = globalThis as { setImmediate?: (task: () => void) => void };
    (inNode ?? asMessage)(resolve);
  });

/** For browsers, which delay timers that follow upon each other by 4 ms. */
function asMessage(task: () => void): void {
  const { port1, port2 } = new MessageChannel();
  port1.addEventListener("message", () => {
    port1.close();
    task();
  });
  port1.start();
  port2.postMessage(null);
}
