/**
 * While a promise of Dawn's is pending it reschedules itself through `setImmediate` some 200,000 times a second, and so
 * keeps one core from the software driver. Here it goes on at once for a tenth of a millisecond, which serves small reads;
 * then after naps of a tenth, in which this thread takes no core; and in long waits by a timer, once a millisecond, so that
 * other work of the thread is not held up.
 */
const SPIN_MS = 0.1;
const NAP_MS = 0.1;
const NAPS_MS = 4;
const POLL_MS = 1;

let waitingSince = 0;
const neverNotified = new Int32Array(new SharedArrayBuffer(4));

/** A new wait begins: look often again. */
export function noteWait(): void {
  waitingSince = performance.now();
}

/** Dawn's callback is a native function without a name; bound functions have one, and users' own have a source. */
const isDawns = (callback: unknown): boolean =>
  typeof callback === "function" &&
  callback.name === "" &&
  Function.prototype.toString.call(callback) === "function () { [native code] }";

/** Slows Dawn's calls of `setImmediate` and leaves all others alone. Call once, before Dawn is loaded. */
export function calmEventPump(): void {
  const { setImmediate: original } = globalThis;
  const calmed = (callback: (...args: unknown[]) => void, ...args: unknown[]): unknown => {
    if (!isDawns(callback)) return original(callback, ...args);
    const waited = performance.now() - waitingSince;
    if (waited > NAPS_MS) return setTimeout(callback, POLL_MS, ...args);
    if (waited > SPIN_MS) Atomics.wait(neverNotified, 0, 0, NAP_MS);
    return original(callback, ...args);
  };
  globalThis.setImmediate = Object.assign(calmed, original) as unknown as typeof setImmediate;
}
