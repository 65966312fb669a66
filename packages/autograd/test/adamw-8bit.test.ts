import { CpuDevice, ParamStore, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { AdamW, type AdamWOptions } from "../src/index.ts";
import { expectNoLeaks } from "./support.ts";

const SIZE = 5000;

/** Minimizes Σ (p - target)² / 2 of one parameter under noise: its optimizer, and a way to go on. */
function problem(device: CpuDevice, options: AdamWOptions) {
  const params = new ParamStore(device, "adapter");
  const target = new TestRandom(1).normals(SIZE);
  const p = params.add("p", device.zeros([SIZE]));
  const adamw = new AdamW(params, options);
  const noise = new TestRandom(2);
  const run = async (steps: number) => {
    for (let step = 0; step < steps; step++) {
      const values = await p.read();
      const gradient = Float64Array.from(values, (x, i) => x - target[i] + 0.1 * noise.normal());
      using g = device.tensor(gradient, [SIZE]);
      adamw.step(new Map([[p, g]]), { lr: 0.05 });
    }
    const values = await p.read();
    return Math.sqrt(Array.from(values).reduce((sum, x, i) => sum + (x - target[i]) ** 2, 0) / SIZE);
  };
  const dispose = () => {
    adamw.dispose();
    params.dispose();
  };
  return { params, p, adamw, run, dispose };
}

describe("AdamW with 8-bit state", () => {
  it("gets where f32 state gets, with little more than a quarter of its bytes", async () => {
    const device = new CpuDevice();
    const before = device.memory.live.optimizer;
    const whole = problem(device, { weightDecay: 0 });
    const wholeBytes = device.memory.live.optimizer - before;
    const small = problem(device, { weightDecay: 0, state: "8bit" });
    const smallBytes = device.memory.live.optimizer - before - wholeBytes;
    expect(smallBytes).toBeLessThan(wholeBytes * 0.25 + 4 * 512 + 200);
    const [a, b] = [await whole.run(80), await small.run(80)];
    expect(a).toBeLessThan(0.1);
    expect(Math.abs(b - a)).toBeLessThan(0.03);
    for (const each of [whole, small]) each.dispose();
    expectNoLeaks(device);
  });

  it("goes on from a checkpoint as if it had never stopped", async () => {
    const device = new CpuDevice();
    const one = problem(device, { state: "8bit" });
    const two = problem(device, { state: "8bit" });
    await one.run(3);
    const { step, tensors } = one.adamw.exportState();
    for (const [name, tensor] of two.adamw.exportState().tensors)
      device.assign(tensor, await tensors.get(name)!.read());
    two.adamw.stepsDone = step;
    device.assign(two.p, await one.p.read());
    const gradient = new TestRandom(5).normals(SIZE);
    for (const { adamw, p } of [one, two]) {
      using g = device.tensor(gradient, [SIZE]);
      adamw.step(new Map([[p, g]]), { lr: 0.05 });
    }
    expect(await two.p.read()).toEqual(await one.p.read());
    for (const [name, tensor] of one.adamw.exportState().tensors) {
      expect(await two.adamw.exportState().tensors.get(name)!.read(), name).toEqual(await tensor.read());
    }
    for (const each of [one, two]) each.dispose();
    expectNoLeaks(device);
  });
});
