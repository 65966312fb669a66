/**
 * While a promise of Dawn is pending, Dawn reschedules its event pump through `setImmediate` some 200,000 times a second, which
 * takes a core away from the software driver. This module slows the pump: for the first 0.05 ms of a wait it runs at once,
 * which serves small reads; then it runs after sleeps of 0.05 ms, in which this thread uses no core; and in long waits a timer
 * runs it once a millisecond, so that other work of this thread can proceed.
 */
const SPIN_MS = 0.05;
const NAP_MS = 0.05;
const NAPS_MS = 4;
const POLL_MS = 1;

let waitingSince = 0;
const neverNotified = new Int32Array(new SharedArrayBuffer(4));

type Method = (this: unknown, ...args: unknown[]) => unknown;

/** Every wait for the GPU starts with the short interval again, also a wait of another library on the same Dawn. */
function watchWaits(globals: Readonly<Record<string, unknown>>): void {
  for (const [type, name] of [
    ["GPUQueue", "onSubmittedWorkDone"],
    ["GPUBuffer", "mapAsync"],
  ]) {
    const { prototype } = globals[type] as { prototype: Record<string, Method> };
    const original = prototype[name];
    prototype[name] = function (...args) {
      waitingSince = performance.now();
      return original.apply(this, args);
    };
  }
}

/** Dawn's callback is a native function without a name; bound functions have a name, and user functions have source text. */
const isDawns = (callback: unknown): boolean =>
  typeof callback === "function" &&
  callback.name === "" &&
  Function.prototype.toString.call(callback) === "function () { [native code] }";

let isCalm = false;

/** Delays Dawn's calls of `setImmediate` and no others. `globals` are Dawn's classes; a second call does nothing. */
export function calmEventPump(globals: Readonly<Record<string, unknown>>): void {
  if (isCalm) return;
  isCalm = true;
  watchWaits(globals);
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
