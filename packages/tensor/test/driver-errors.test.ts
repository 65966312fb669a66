import { expect, it } from "vitest";
import { DriverErrors } from "../src/webgpu/driver-errors.ts";

/** A device whose process has ended: browsers reject the results of its error scopes. */
function lostGpu(): GPUDevice {
  return {
    lost: new Promise(() => {}),
    pushErrorScope() {},
    popErrorScope: () => Promise.reject(new Error("Instance dropped in popErrorScope")),
  } as unknown as GPUDevice;
}

// Vitest fails a run with a rejection that nobody handles.
it.each([1, 600])("%i results of a lost device reject the next wait, and nothing else", async (scopes) => {
  const errors = new DriverErrors(lostGpu(), "gpu");
  for (let i = 0; i < scopes; i++) {
    errors.scope(
      "validation",
      () => {},
      () => {},
    );
  }
  await new Promise((turn) => setTimeout(turn));
  const wait = () => errors.begin(() => {})();
  await expect(wait()).rejects.toThrow("Instance dropped");
  await wait();
});

it("an error that an op throws reaches all waits in flight, and no later one", async () => {
  const errors = new DriverErrors(lostGpu(), "gpu");
  const throwFirst = () => errors.throwFirst();
  const begun = [errors.begin(throwFirst), errors.begin(throwFirst)];
  errors.note("T-KERNEL", "refused");
  expect(throwFirst).toThrow("refused");
  for (const end of begun) await expect(end()).rejects.toThrow("refused");
  await errors.begin(throwFirst)();
});

it("an error outside all scopes is T-GPU at the next wait, once", async () => {
  const gpu = lostGpu();
  const errors = new DriverErrors(gpu, "gpu");
  const wait = () => errors.begin(() => errors.throwFirst())();
  gpu.onuncapturederror!({ error: { message: "bad" } } as GPUUncapturedErrorEvent);
  await expect(wait()).rejects.toThrow(/T-GPU.*bad/);
  await wait();
});
