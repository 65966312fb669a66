/** A training step in a page. */
import { type Device, openBrowserWasm, openWebGpu } from "@sidenet/tensor";
import { decoderStep } from "../decoder-step.ts";

/** Loss, gradients and updated parameters by name. */
async function stepOn(device: Device, size: number): Promise<Record<string, number[]>> {
  try {
    const values = await decoderStep(device, size);
    return Object.fromEntries([...values].map(([name, numbers]) => [name, Array.from(numbers)]));
  } finally {
    device.dispose();
  }
}

export const onWasm = async (threads: number) => stepOn(await openBrowserWasm({ threads }), 4);

export async function onWebGpu() {
  const { gpu } = (globalThis as unknown as { navigator: { gpu?: GPU } }).navigator;
  return stepOn(await openWebGpu(gpu), 1);
}
