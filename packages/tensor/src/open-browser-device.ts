/** Choosing a device in a page or in a worker of one. */
import { chooseDevice, type OpenedDevice } from "./choose-device.ts";
import { CpuDevice } from "./cpu/device.ts";
import { SidenetError } from "./errors.ts";
import { openBrowserWasm } from "./wasm/browser.ts";
import { hasSimd } from "./wasm/open.ts";
import { describeAdapter, openWebGpu, requestAdapter } from "./webgpu/open.ts";

/** What `openBrowserDevice` takes. */
export type BrowserDeviceName = "auto" | "webgpu" | "wasm" | "cpu";

const isCode = (error: unknown, code: string): error is SidenetError =>
  error instanceof SidenetError && error.code === code;

/** What a device that was not to be had said of it, for who reads a page; other errors are thrown on. */
function refusal(error: unknown, gpu: GPU | undefined): string {
  if (isCode(error, "T-NO-ADAPTER")) {
    return gpu === undefined ? "this browser has no WebGPU" : "this browser's WebGPU finds no graphics card";
  }
  if (isCode(error, "T-NO-DEVICE") || isCode(error, "T-WASM"))
    return error.message.slice(`[${error.code}] `.length).replace(/\.$/, "");
  throw error;
}

/**
 * The best device that this browser gives, in the order of `chooseDevice`, or the one that was asked for. One that the
 * browser refuses is followed by the next: a GPU by WebAssembly, that by the reference, and `reason` says so.
 */
export async function openBrowserDevice(
  name: BrowserDeviceName = "auto",
  gpu: GPU | undefined = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu,
): Promise<OpenedDevice> {
  const refused: string[] = [];
  let reason = "asked for";
  const why = () => (refused.length > 0 ? refused.join(", and ") : reason);
  if (name === "auto" || name === "webgpu") {
    try {
      const chosen = chooseDevice(describeAdapter(await requestAdapter(gpu)));
      if (name === "auto") ({ reason } = chosen);
      if (name === "webgpu" || chosen.device === "webgpu") return { device: await openWebGpu(gpu), reason };
    } catch (error) {
      refused.push(refusal(error, gpu));
    }
  }
  if (name !== "cpu") {
    try {
      if (hasSimd()) return { device: await openBrowserWasm(), reason: why() };
      refused.push("this browser has no WebAssembly SIMD");
    } catch (error) {
      refused.push(refusal(error, gpu));
    }
  }
  return { device: new CpuDevice(), reason: why() };
}
