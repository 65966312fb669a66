import { CpuDevice } from "@sidenet/tensor";
import { expect, it } from "vitest";
import { Tape } from "../src/tape.ts";

it("sigmoid has a gradient in both tails: a gate that is saturated in f32 can still open", async () => {
  const device = new CpuDevice();
  const values = [-80, -50, -20, 20, 50, 80];
  using gradient = device.scope(() => {
    const x = device.tensor(values, [values.length]);
    using tape = new Tape(device, [x]);
    return tape.backward(tape.sum(tape.sigmoid(x))).get(x)!;
  });
  const got = await gradient.read();
  for (const [i, x] of values.entries()) {
    const wanted = Math.exp(-Math.abs(x)); // σ(x) σ(-x), but for 1e-9 of it
    expect(Math.abs(got[i] - wanted) / wanted).toBeLessThan(1e-6);
  }
});
