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
  await expect(errors.settle()).rejects.toThrow("Instance dropped");
  await errors.settle();
});
