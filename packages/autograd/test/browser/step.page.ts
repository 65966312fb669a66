/** A training step in a page. */
import { openBrowserWasm } from "@sidenet/tensor";
import { decoderStep } from "../decoder-step.ts";

/** Loss, gradients and updated parameters by name. */
export async function step(threads: number): Promise<Record<string, number[]>> {
  const device = await openBrowserWasm({ threads });
  try {
    const values = await decoderStep(device, 4);
    return Object.fromEntries([...values].map(([name, numbers]) => [name, Array.from(numbers)]));
  } finally {
    device.dispose();
  }
}
