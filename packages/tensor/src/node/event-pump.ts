/**
 * While a promise of Dawn's is pending it reschedules itself through `setImmediate` some 200,000 times a second, and so
 * keeps one core from the software driver. Here it spins for half a millisecond, which serves small reads, and then polls
 * once a millisecond.
 */
const SPIN_MS = 0.5;
const POLL_MS = 1;

let waitingSince = 0;

/** A new wait begins: spin again. */
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
    if (!isDawns(callback) || performance.now() - waitingSince < SPIN_MS) return original(callback, ...args);
    return setTimeout(callback, POLL_MS, ...args);
  };
  globalThis.setImmediate = Object.assign(calmed, original) as unknown as typeof setImmediate;
}
