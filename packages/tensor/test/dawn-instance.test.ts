// Dawn ends the process if its instance is collected while a device of it lives, so there is one, whoever asks first.
import { installWebGpuGlobals } from "@sidenet/tensor/node";
import { expect, it, vi } from "vitest";
import { gpuAvailable } from "./support.ts";

it.runIf(gpuAvailable)("Dawn is created once, also for callers at the same time", async () => {
  const define = vi.spyOn(Object, "defineProperty");
  await Promise.all([installWebGpuGlobals(), installWebGpuGlobals()]);
  const installed = define.mock.calls.flatMap(([, name, { value }]) => (name === "gpu" ? [value] : []));
  define.mockRestore();
  expect(installed).toHaveLength(2);
  expect(installed[0]).toBe(installed[1]);
});
