// What the parts of a GPU run share: a device, and an end that no driver's thread can delay.

import { openDevice } from "@sidenet/tensor/node";

export async function open(name, options = {}) {
  const { device } = await openDevice(name, options);
  console.error(`device: ${device.kind}, ${device.label}`);
  return device;
}

/** Prints the result as the last line of standard output and ends the process. */
export function finish(result, exitCode = 0) {
  process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(exitCode));
}

export const median = (values) => [...values].sort((a, b) => a - b)[Math.floor(values.length / 2)];
