/** Choosing a device in a page or in a worker of one. */
import { chooseDevice, type OpenedDevice } from "./choose-device.ts";
import { CpuDevice } from "./cpu/device.ts";
import { SidenetError } from "./errors.ts";
import { openBrowserWasm } from "./wasm/browser.ts";
import { hasSimd } from "./wasm/open.ts";
import { describeAdapter, openWebGpu, requestAdapter } from "./webgpu/open.ts";

export type BrowserDeviceName = "auto" | "webgpu" | "wasm" | "cpu";

/** What a device that was not to be had said of it; other errors are thrown on. */
function refusal(error: unknown): string {
  if (!(error instanceof SidenetError) || !/^T-(NO-ADAPTER|NO-DEVICE|WASM)$/.test(error.code)) throw error;
  return error.message.slice(`[${error.code}] `.length);
}

/**
 * The best device that this browser gives, in the order of `chooseDevice`, or the one that was asked for. One that the
 * browser refuses is followed by the next: a GPU by WebAssembly, that by the reference, and `reason` says so.
 */
export async function openBrowserDevice(
  name: BrowserDeviceName = "auto",
  gpu: GPU | undefined = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu,
): Promise<OpenedDevice> {
  if (name === "cpu") return { device: new CpuDevice(), reason: "asked for" };
  const refused: string[] = [];
  let reason = "asked for";
  const why = () => (refused.length > 0 ? refused.join(" ") : reason);
  if (name !== "wasm") {
    try {
      const chosen = chooseDevice(describeAdapter(await requestAdapter(gpu)));
      if (name === "auto") ({ reason } = chosen);
      if (name === "webgpu" || chosen.device === "webgpu") return { device: await openWebGpu(gpu), reason };
    } catch (error) {
      refused.push(refusal(error));
    }
  }
  if (!hasSimd()) refused.push("This browser has no WebAssembly SIMD.");
  else {
    try {
      return { device: await openBrowserWasm(), reason: why() };
    } catch (error) {
      refused.push(refusal(error));
    }
  }
  return { device: new CpuDevice(), reason: why() };
}
