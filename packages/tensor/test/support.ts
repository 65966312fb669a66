import type { Device, HostArray } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import { expect } from "vitest";

/** `SIDENET_DEVICE=cpu npm test` is the explicit way to do without an adapter; otherwise a missing one fails. */
export const gpuAvailable = process.env.SIDENET_DEVICE !== "cpu";

/** A WebGPU device whose new memory is full of NaN, so that reading what nobody wrote shows. */
export const openTestGpu = (options: Parameters<typeof openNodeWebGpu>[0] = {}): Promise<Device> =>
  openNodeWebGpu({ poison: true, ...options });

/** Runs of a property: `SIDENET_RUNS` overrides the number, `SIDENET_SEED` the seed, which is printed on failure. */
export function propertyRuns(numRuns: number): { numRuns: number; seed: number } {
  return {
    numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
    seed: Number(process.env.SIDENET_SEED ?? 20260101),
  };
}

/** Rounding of an f16 store, and of values below its smallest normal number. */
const F16 = { rel: 2 ** -10, abs: 2 ** -20 };

/** Fails when an element is further from the reference than the tolerance allows, or is not finite. */
export function assertClose(
  what: string,
  got: HostArray,
  want: HostArray,
  close: { rel: number; abs?: number },
  dtype: string | null,
): void {
  expect(got.length, what).toBe(want.length);
  let largest = 0;
  for (const value of want) largest = Math.max(largest, Math.abs(value));
  const half = dtype === "f16" ? F16 : { rel: 0, abs: 0 };
  const limit = (close.rel + half.rel) * largest + (close.abs ?? 0) + half.abs;
  for (let i = 0; i < got.length; i++) {
    const error = Math.abs(got[i] - want[i]);
    if (!(error <= limit)) {
      expect.fail(`${what}[${i}] is ${got[i]}, the reference says ${want[i]}; |error| ${error} > ${limit}`);
    }
  }
}

/**
 * A property's body that does nothing once `SIDENET_SECONDS` have passed since its first case: how a deep run ends in
 * time. (fast-check's own limit leaves a running case behind, which then runs into the next test.)
 */
export function timeBoxed<A>(body: (drawn: A) => Promise<void>): (drawn: A) => Promise<void> {
  const limitMs = 1000 * Number(process.env.SIDENET_SECONDS ?? Number.POSITIVE_INFINITY);
  let end = Number.NaN;
  return async (drawn) => {
    if (Number.isNaN(end)) end = Date.now() + limitMs;
    if (Date.now() < end) await body(drawn);
  };
}
