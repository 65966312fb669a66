/** `detectAnomaly`: the op that made the first NaN or infinity is named, and no other. */
import { CpuDevice, type Device, MetaDevice, type Ops, SidenetError, type Tensor } from "@sidenet/tensor";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

/** Runs `body` in the mode and returns the error of reading its result, or "clean". */
async function told(device: Device, body: (ops: Ops) => Tensor): Promise<string> {
  device.detectAnomaly = true;
  using result = device.scope(() => body(device.ops));
  try {
    await result.read();
    return "clean";
  } catch (error) {
    expect(error).toBeInstanceOf(SidenetError);
    expect((error as SidenetError).code).toBe("T-ANOMALY");
    return (error as SidenetError).message;
  } finally {
    await device.synchronize(); // reported once: this does not reject again
  }
}

const DEVICES: Record<string, () => Promise<Device> | Device> = {
  cpu: () => new CpuDevice(),
  ...(gpuAvailable ? { webgpu: () => openTestGpu() } : {}),
};

describe.each(Object.keys(DEVICES))("detectAnomaly on %s", (kind) => {
  let device: Device;
  beforeEach(async () => {
    device = await DEVICES[kind]();
  });
  afterEach(() => device?.dispose());

  it("names the op, the element, its value and the shapes, not the ops that it spread to", async () => {
    const message = await told(device, (ops) => {
      const x = device.tensor([1, 2, 3, 4, 1e30, 6], [2, 3]);
      const y = device.tensor([1, 1e30, 2], [3]);
      const bad = ops.mul(ops.scale(x, { factor: 2 }), y);
      return ops.sum(ops.sub(ops.mul(bad, bad), ops.mul(bad, bad)));
    });
    expect(message).toMatch(/mul made .*: y\[4\] .* is Infinity.*: a f32 \[2, 3\], b f32 \[3\]/);
  });

  it("finds what is not in the result any more, and what an op wrote in place", async () => {
    const gone = await told(device, (ops) => {
      const x = device.tensor([1e30, 1], [2]);
      ops.mul(x, x);
      return ops.scale(x, { factor: 2 });
    });
    expect(gone).toContain("mul made");
    const inPlace = await told(device, (ops) => {
      const total = device.tensor([3e38, 0], [2]);
      ops.accumulate(total, device.tensor([3e38, 0], [2]));
      return ops.scale(total, { factor: 0.5 });
    });
    expect(inPlace).toMatch(/accumulate made .*\[0\]/);
  });

  it("keeps quiet for clean runs and for what the host wrote, and when it is off", async () => {
    const clean = await told(device, (ops) => {
      const x = device.zeros([5, 8]);
      const w = device.tensor(new Float32Array(64).fill(0.1), [8, 8]);
      const h = ops.linear(ops.rmsNorm(ops.add(x, device.tensor(new Float32Array(8).fill(1e4), [8]))), w);
      return ops.sum(ops.softmax(ops.silu(h)));
    });
    expect(clean).toBe("clean");
    const data = await told(device, (ops) => ops.scale(device.tensor([Number.NaN, 1], [2]), { factor: 2 }));
    expect(data).toBe("clean");
    device.detectAnomaly = false;
    using x = device.tensor([1e30], [1]);
    using y = device.ops.mul(x, x);
    expect(Number.isFinite(await y.item())).toBe(false);
  });

  it("tells what it found before it was switched off, once", async () => {
    device.detectAnomaly = true;
    using x = device.tensor([1e30], [1]);
    using y = device.ops.mul(x, x);
    device.detectAnomaly = false;
    using z = device.ops.mul(y, y);
    await expect(z.read()).rejects.toThrow("mul made");
    await device.synchronize();
  });

  it("knows nothing of what ops made while it was off", async () => {
    device.detectAnomaly = true;
    using x = device.tensor([1e30], [1]);
    expect(await told(device, (ops) => ops.neg(x))).toBe("clean");
    device.detectAnomaly = false;
    device.scope(() => device.ops.accumulate(x, device.ops.mul(x, x)));
    expect(await told(device, (ops) => ops.neg(x))).toBe("clean");
  });

  it("looks again at what the host has written over", async () => {
    using x = device.tensor([1, 2], [2]);
    expect(await told(device, (ops) => ops.neg(x))).toBe("clean");
    device.assign(x, [Number.NaN, 1]);
    expect(await told(device, (ops) => ops.neg(x))).toBe("clean");
    device.assign(x, [1e30, 1]);
    expect(await told(device, (ops) => ops.mul(x, x))).toContain("mul made");
  });

  it("tells through synchronize too, and again for the next one", async () => {
    device.detectAnomaly = true;
    using x = device.tensor([1e30], [1]);
    for (let i = 0; i < 2; i++) {
      using y = device.ops.mul(x, x);
      expect(y.size).toBe(1);
      await expect(device.synchronize()).rejects.toMatchObject({ code: "T-ANOMALY" });
    }
    await device.synchronize();
  });
});

it("detectAnomaly does nothing on meta", async () => {
  const device = new MetaDevice();
  device.detectAnomaly = true;
  using x = device.tensor([1e30], [1]);
  using y = device.ops.mul(x, x);
  expect(y.shape).toEqual([1]);
  await device.synchronize();
});
