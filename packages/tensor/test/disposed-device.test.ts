// What a device refuses once it was disposed, and what it still does: the same on every kind of device.
import {
  CpuDevice,
  DEFAULT_TILES,
  type Device,
  MetaDevice,
  SidenetError,
  type Tensor,
  type WebGpuDevice,
} from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

const kinds: readonly (readonly [string, () => Device | Promise<Device>])[] = [
  ["cpu", () => new CpuDevice()],
  ["meta", () => new MetaDevice()],
  ["wasm", () => openNodeWasm({ threads: 2 })],
  ...(gpuAvailable ? ([["webgpu", () => openTestGpu()]] as const) : []),
];

async function codeOf(body: () => unknown): Promise<string> {
  try {
    await body();
  } catch (error) {
    expect((error as SidenetError).message).toMatch(/ was disposed\. Open another device/);
    return error instanceof SidenetError ? error.code : `${error}`;
  }
  return "no error";
}

const uses: readonly (readonly [string, (device: Device, x: Tensor) => unknown])[] = [
  ["an op", (device, x) => device.ops.neg(x)],
  ["an op in place", (device, x) => device.ops.fill(x, { value: 1 })],
  ["an op that makes a view", (device, x) => device.ops.reshape(x, { shape: [2, 1] })],
  ["a new tensor of values", (device) => device.tensor([1], [1])],
  ["a new tensor of zeros", (device) => device.zeros([1])],
  ["a new tensor without contents", (device) => device.empty([1])],
  ["an assignment", (device, x) => device.assign(x, [5, 6])],
  ["a read", (_, x) => x.read()],
  ["a wait", (device) => device.synchronize()],
  ["another handle", (device, x) => device.retain(x)],
];

const gpuUses = [
  ["the start of a profile", (device: WebGpuDevice) => device.startProfile()],
  ["the end of a profile", (device: WebGpuDevice) => device.stopProfile()],
  ["other tiles", (device: WebGpuDevice) => device.retile(DEFAULT_TILES)],
] as unknown as typeof uses;

describe.each(kinds)("a %s device that was disposed", (kind, open) => {
  it.each(kind === "webgpu" ? [...uses, ...gpuUses] : uses)("refuses %s", async (_, use) => {
    const device = await open();
    using x = device.tensor([1, 2], [2]);
    device.dispose();
    expect(await codeOf(() => use(device, x))).toBe("T-DEVICE-LOST");
    expect(device.memory.liveCount).toBe(1);
  });

  it("lets its tensors be freed, and may be disposed again", async () => {
    const device = await open();
    expect(device.disposed).toBe(false);
    const x = device.tensor([1, 2], [2]);
    device.dispose();
    device.dispose();
    expect(device.disposed).toBe(true);
    x.dispose();
    expect(device.memory.liveBytes).toBe(0);
  });

  it("was so at the end of the block that used it", async () => {
    let kept: Device;
    {
      using device = await open();
      kept = device;
    }
    expect(kept.disposed).toBe(true);
  });
});
