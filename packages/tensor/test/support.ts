import { type Device, findDifference, SidenetError, type Tensor } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import { expect } from "vitest";

/** `SIDENET_DEVICE=cpu npm test` is the explicit way to do without an adapter; otherwise a missing one fails. */
export const gpuAvailable = process.env.SIDENET_DEVICE !== "cpu";

/** A WebGPU device whose new memory is full of NaN, so that reading what nobody wrote shows. */
export const openTestGpu = (options: Parameters<typeof openNodeWebGpu>[0] = {}): Promise<Device> =>
  openNodeWebGpu({ poison: true, ...options });

/** The methods of ops without types, as in JavaScript. */
export const loose = (device: Device): Readonly<Record<string, (...args: unknown[]) => Tensor>> =>
  device.ops as unknown as ReturnType<typeof loose>;

/** The message of the `SidenetError` that `body` throws, or "no error". */
export function messageOf(body: () => unknown): string {
  try {
    body();
  } catch (error) {
    if (error instanceof SidenetError) return error.message;
    throw error;
  }
  return "no error";
}

/** Runs of a property: `SIDENET_RUNS` overrides the number, `SIDENET_SEED` the seed, which is printed on failure. */
export function propertyRuns(numRuns: number): { numRuns: number; seed: number } {
  return {
    numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
    seed: Number(process.env.SIDENET_SEED ?? 20260101),
  };
}

/** Fails when an element is further from the reference than the tolerance allows, or is not finite. */
export function assertClose(...args: Parameters<typeof findDifference>): void {
  const problem = findDifference(...args);
  if (problem !== null) expect.fail(problem);
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
