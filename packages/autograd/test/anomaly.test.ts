/** `detectAnomaly` under a tape: forward ops, ops of gradients, and a clean step. */
import { CpuDevice, type Device, type Tensor } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { disposeGradients, Tape } from "../src/index.ts";
import { expectNoLeaks } from "./support.ts";

const DEVICES: Record<string, () => Promise<Device> | Device> = {
  cpu: () => new CpuDevice(),
  ...(process.env.SIDENET_DEVICE === "cpu" ? {} : { webgpu: () => openNodeWebGpu({ poison: true }) }),
};

describe.each(Object.keys(DEVICES))("detectAnomaly under a tape on %s", (kind) => {
  let device: Device;
  beforeEach(async () => {
    device = await DEVICES[kind]();
    device.detectAnomaly = true;
  });
  afterEach(() => device?.dispose());

  /** Reads the gradient of a loss, as a step would. */
  async function step(values: readonly number[], loss: (tape: Tape, x: Tensor) => Tensor): Promise<void> {
    using x = device.tensor(values, [values.length]);
    using tape = new Tape(device, [x]);
    using y = device.scope(() => loss(tape, x));
    const gradients = tape.backward(y);
    try {
      await gradients.get(x)!.read();
    } finally {
      disposeGradients(gradients);
    }
  }

  it("names an op of the forward pass", async () => {
    const bad = step([1e20, 1], (tape, x) => tape.sum(tape.mul(tape.mul(x, x), x)));
    await expect(bad).rejects.toMatchObject({
      code: "T-ANOMALY",
      message: expect.stringContaining("mul made"),
    });
    expectNoLeaks(device);
  });

  it("names an op of the backward pass", async () => {
    // 1e30 (1e30 (1e-30 x)) is finite, the product of the factors is not.
    const bad = step([1e-30, 0], (tape, x) =>
      tape.sum(tape.scale(tape.scale(x, { factor: 1e30 }), { factor: 1e30 })),
    );
    await expect(bad).rejects.toMatchObject({ message: expect.stringContaining("scale made") });
    expectNoLeaks(device);
  });

  it("lets a clean step pass", async () => {
    await step([1, 2, 3, 1e4], (tape, x) => tape.sum(tape.mul(tape.silu(x), tape.rmsNorm(x))));
    expectNoLeaks(device);
  });
});
