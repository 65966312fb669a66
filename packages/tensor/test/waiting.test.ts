// Waiting for a device: other tasks of the thread have their turn (timers, requests, an abort), and errors reach all who wait.
import { CpuDevice, type Device, type WebGpuDevice } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { describe, expect, it } from "vitest";
import { gpuAvailable, openTestGpu } from "./support.ts";

const kinds: readonly (readonly [string, () => Device | Promise<Device>])[] = [
  ["cpu", () => new CpuDevice()],
  ["wasm", () => openNodeWasm({ threads: 2 })],
  ...(gpuAvailable ? ([["webgpu", () => openTestGpu()]] as const) : []),
];

it.each(kinds)("a loop that waits for %s lets a timer stop it", async (_, open) => {
  using device = await open();
  using x = device.tensor([1, 2], [2]);
  for (const wait of [() => x.read(), () => device.synchronize()]) {
    let rings = false;
    setTimeout(() => {
      rings = true;
    });
    const end = performance.now() + 5000; // without a turn for the timer, the loop would never end
    while (!rings && performance.now() < end) await wait();
    expect(rings).toBe(true);
  }
});

it.each(kinds)("a read from %s gives the values at the time of the call", async (_, open) => {
  using device = await open();
  using x = device.tensor([1, 2], [2]);
  const before = x.read();
  device.ops.fill(x, { value: 7 });
  expect([...(await before)]).toEqual([1, 2]);
  expect([...(await x.read())]).toEqual([7, 7]);
});

/** How each of these waits ends: the code of its error, or "fine". */
const endsOf = (waits: readonly Promise<unknown>[]) =>
  Promise.all(
    waits.map((wait) =>
      wait.then(
        () => "fine",
        ({ code }) => code,
      ),
    ),
  );

it.each(kinds)("an anomaly on %s is told once, to all who wait", async (_, open) => {
  using device = await open();
  device.detectAnomaly = true;
  using zero = device.tensor([0], [1]);
  using y = device.ops.div(zero, zero);
  const waits = [device.synchronize(), y.read(), y.read(), device.synchronize()];
  expect(await endsOf(waits)).toEqual(Array(4).fill("T-ANOMALY"));
  expect(await endsOf([y.read(), device.synchronize()])).toEqual(["fine", "fine"]);
});

describe.skipIf(!gpuAvailable)("an error of a driver", () => {
  const BROKEN =
    "@group(0) @binding(0) var<storage, read_write> y: array<f32>;\n" +
    "@compute @workgroup_size(1) fn main() { y[0] = nothing; }";
  it.each([false, true])("is told once, to all who wait (anomalies watched: %s)", async (isWatched) => {
    using device = (await openTestGpu()) as WebGpuDevice;
    device.addKernel("broken", BROKEN);
    using y = device.zeros([1]);
    await device.synchronize();
    device.dispatch("broken/main", { bind: { y }, params: {}, grid: 1 });
    device.detectAnomaly = isWatched;
    if (isWatched) device.ops.neg(y).dispose(); // its check waits for the GPU too
    const waits = [y.read(), device.synchronize(), y.read()];
    expect(await endsOf(waits)).toEqual(Array(3).fill("T-KERNEL"));
    expect(await endsOf([y.read(), device.synchronize()])).toEqual(["fine", "fine"]);
  });

  it("does not replace an earlier one, nor a finding of detectAnomaly", async () => {
    using device = (await openTestGpu()) as WebGpuDevice;
    const refuse = (name: string) => {
      device.addKernel(name, BROKEN.replace("nothing", name));
      device.dispatch(`${name}/main` as "fill/main", { bind: { y }, params: {}, grid: 1 });
    };
    using y = device.zeros([1]);
    await device.synchronize();
    refuse("first");
    const told = device.synchronize().catch(String);
    await new Promise((resolve) => setTimeout(resolve, 250));
    refuse("second");
    expect(await told).toContain("first.wgsl");
    await expect(device.synchronize()).rejects.toThrow("second.wgsl");
    device.detectAnomaly = true;
    using z = device.ops.div(y, y);
    await new Promise((resolve) => setTimeout(resolve, 250)); // found, but not told yet
    refuse("third");
    expect(await endsOf([z.read()])).toEqual(["T-KERNEL"]);
    expect(await endsOf([z.read()])).toEqual(["T-ANOMALY"]);
    expect(await endsOf([z.read()])).toEqual(["fine"]);
  });

  it("leaves no profile running", async () => {
    using device = (await openTestGpu()) as WebGpuDevice;
    if (!device.gpu.features.has("timestamp-query")) return;
    device.addKernel("broken", BROKEN);
    using y = device.zeros([1]);
    await device.synchronize();
    device.startProfile();
    device.dispatch("broken/main", { bind: { y }, params: {}, grid: 1 });
    await device.gpu.queue.onSubmittedWorkDone();
    await new Promise((resolve) => setTimeout(resolve, 50));
    await device.stopProfile();
    expect(await endsOf([device.synchronize()])).toEqual(["T-KERNEL"]);
    device.startProfile();
    await device.stopProfile();
  });
});
