/** Gradients where a derivative is near 0 or infinite. */
import { CpuDevice, type DType, type Ops, type Tensor } from "@sidenet/tensor";
import { expect, it } from "vitest";
import { Tape } from "../src/index.ts";

/** dy/dx of an elementwise function. */
async function derivatives(f: (ops: Ops, x: Tensor) => Tensor, values: readonly number[], dtype?: DType) {
  const device = new CpuDevice();
  using gradient = device.scope(() => {
    const x = device.tensor(values, [values.length], dtype ? { dtype } : {});
    using tape = new Tape(device, [x]);
    return tape.backward(tape.sum(f(tape, x))).get(x)!;
  });
  return gradient.read();
}

it("sigmoid has a gradient in both tails: a gate that is saturated in f32 can still open", async () => {
  const values = [-80, -50, -20, 20, 50, 80];
  const got = await derivatives((ops, x) => ops.sigmoid(x), values);
  for (const [i, x] of values.entries()) {
    const wanted = Math.exp(-Math.abs(x)); // σ(x) σ(-x), but for 1e-9 of it
    expect(Math.abs(got[i] - wanted) / wanted).toBeLessThan(1e-6);
  }
});

it("sqrt has the gradient 1 / 2√x for every x above 0, and a finite one at 0", async () => {
  const values = [2 ** -126, 1e-30, 1e-14, 1, 1e30];
  const got = await derivatives((ops, x) => ops.sqrt(x), [...values, 0]);
  for (const [i, x] of values.entries()) expect(got[i] * 2 * Math.sqrt(x)).toBeCloseTo(1, 5);
  expect(got[values.length]).toBe(2 ** 62);
  const half = await derivatives((ops, x) => ops.sqrt(x), [2 ** -24, 1, 0], "f16");
  expect([...half]).toEqual([2 ** 11, 0.5, 2 ** 11]);
});
