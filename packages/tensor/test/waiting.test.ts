// While a program waits for a device, the other tasks of its thread have their turn: timers, requests, an abort.
import { CpuDevice, type Device } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { expect, it } from "vitest";
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
