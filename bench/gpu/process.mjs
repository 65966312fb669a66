// Opening and ending of the scripts in bench/gpu.

import { createRequire } from "node:module";
import { openWebGpu } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";

/** Opens a device and prints which. */
export async function open(name, options = {}) {
  const { device } = await openDevice(name, options);
  console.error(`device: ${device.kind}, ${device.label}`);
  return device;
}

/** Referenced as long as the process lives: Dawn ends it when this is collected. */
let nullGpu = null;

/** A device of Dawn's null backend, which computes nothing: a step there takes what the host needs for a GPU's. */
export async function openNull(options = {}) {
  const { create, globals } = createRequire(import.meta.resolve("@sidenet/tensor"))("webgpu");
  Object.assign(globalThis, globals);
  nullGpu = create(["backend=null", "enable-dawn-features=allow_unsafe_apis"]);
  const device = await openWebGpu(nullGpu, { adapterClass: "discrete", ...options });
  console.error(`device: ${device.kind}, ${device.label}`);
  return device;
}

/** Prints the result as the last line of standard output and ends the process, which the driver's threads would keep running. */
export function finish(result, exitCode = 0) {
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(exitCode));
}
