import {
  CpuDevice,
  type Device,
  type HostArray,
  type Shape,
  SidenetError,
  type Tensor,
} from "@sidenet/tensor";
import { expect } from "vitest";

/** Runs of a property: `SIDENET_RUNS` overrides the number. */
export const propertyRuns = (numRuns: number): { numRuns: number } => ({
  numRuns: Number(process.env.SIDENET_RUNS ?? numRuns),
});

/** Fails in its nth op. */
export class FailingDevice extends CpuDevice {
  opsLeft = Number.POSITIVE_INFINITY;
  protected override compute(execution: Parameters<CpuDevice["compute"]>[0]): void {
    if (this.opsLeft-- === 0) throw new SidenetError("TEST-LOST", execution.row.name);
    super.compute(execution);
  }
}

/** Fails with the labels of what is still live. */
export function expectNoLeaks(device: Device): void {
  expect([...device.memory.allocations()].map(({ label, category }) => `${label} (${category})`)).toEqual([]);
}

/** Fails unless `body` throws a SidenetError of this code whose message holds `text`. */
export function expectCode(code: string, body: () => unknown, text = ""): void {
  let thrown: unknown = null;
  try {
    body();
  } catch (error) {
    thrown = error;
  }
  expect(thrown, `wanted ${code}`).toBeInstanceOf(SidenetError);
  expect((thrown as SidenetError).code).toBe(code);
  expect((thrown as SidenetError).message).toContain(text);
}

/** 1, 2, 3, ... in a shape. */
export function counting(device: Device, shape: Shape): Tensor {
  const size = shape.reduce((a, b) => a * b, 1);
  return device.tensor(
    Array.from({ length: size }, (_, i) => i + 1),
    shape,
  );
}

/** ‖a - b‖ / ‖b‖, or ‖a‖ where b is zero. */
export function relativeError(a: HostArray, b: HostArray): number {
  let difference = 0;
  let norm = 0;
  for (let i = 0; i < b.length; i++) {
    difference += (a[i] - b[i]) ** 2;
    norm += b[i] ** 2;
  }
  return Math.sqrt(difference / (norm || 1));
}

/** Fails where tensors by name differ from those of `want` by a relative error of `limit` or more. */
export function expectClose(
  got: Map<string, ArrayLike<number>>,
  want: Map<string, ArrayLike<number>>,
  limit: number,
): void {
  for (const [name, values] of want) {
    const error = relativeError(Float64Array.from(got.get(name)!), Float64Array.from(values));
    expect(error, name).toBeLessThan(limit);
  }
}
