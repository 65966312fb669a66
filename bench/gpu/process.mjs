// Opening and ending of the scripts in bench/gpu.

import { openDevice } from "@sidenet/tensor/node";

/** Opens a device and prints which. */
export async function open(name, options = {}) {
  const { device } = await openDevice(name, options);
  console.error(`device: ${device.kind}, ${device.label}`);
  return device;
}

/** Prints the result as the last line of standard output and ends the process, which the driver's threads would keep running. */
export function finish(result, exitCode = 0) {
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(exitCode));
}
