/** Opens a device in a web page or worker. */
import { chooseDevice, type OpenedDevice } from "./choose-device.ts";
import { CpuDevice } from "./cpu/device.ts";
import { SidenetError } from "./errors.ts";
import { openBrowserWasm } from "./wasm/browser.ts";
import { hasSimd } from "./wasm/open.ts";
import { describeAdapter, openWebGpu, requestAdapter, type WebGpuOptions } from "./webgpu/open.ts";
import type { WebGpuType } from "./webgpu/webgpu-type.ts";

/** The name of a device of a browser, or "auto". */
export type BrowserDeviceName = "auto" | "webgpu" | "wasm" | "cpu";
const NAMES: readonly BrowserDeviceName[] = ["auto", "webgpu", "wasm", "cpu"];

const isCode = (error: unknown, code: string): error is SidenetError =>
  error instanceof SidenetError && error.code === code;

/** The message of an error that says that a device is not available; rethrows any other error. */
function refusal(error: unknown, gpu: GPU | undefined): string {
  if (isCode(error, "T-NO-ADAPTER")) {
    return gpu === undefined ? "this browser has no WebGPU" : "this browser's WebGPU finds no graphics card";
  }
  if (isCode(error, "T-NO-DEVICE")) return withoutStop(error.text);
  // Their cures are for those who chose the device; the browser's reason is enough for those who see another one.
  if (isCode(error, "T-WASM")) return `WebAssembly does not run here: ${reasonOf(error)}${policyCure(error)}`;
  if (isCode(error, "T-THREADS")) return `WebAssembly has one thread: ${reasonOf(error)}`;
  throw error;
}

const withoutStop = (text: string): string => text.replace(/[.\s]+$/, "");
const reasonOf = ({ cause }: Error): string =>
  withoutStop(cause instanceof Error ? cause.message : String(cause));
/** Where a policy does not allow WebAssembly, browsers say so in words of their own, some of which ask for more than is needed. */
const policyCure = (error: Error): string =>
  /unsafe-eval|CSP|Content Security Policy/i.test(reasonOf(error))
    ? " (a Content-Security-Policy has to allow it: script-src 'wasm-unsafe-eval')"
    : "";

/**
 * Opens the best device of this browser, in the order of `chooseDevice`, or the requested one. If the browser refuses a device,
 * the next one is used (WebAssembly instead of a GPU, one thread instead of several, the reference instead of WebAssembly), and
 * `reason` says so. `options` are those of a GPU, if one is used. Throws `T-NAME` for any other name.
 */
export async function openBrowserDevice(
  name: BrowserDeviceName = "auto",
  options: WebGpuOptions = {},
  gpu: WebGpuType<"GPU"> | undefined = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu,
): Promise<OpenedDevice> {
  if (!NAMES.includes(name)) {
    throw new SidenetError("T-NAME", `there is no device "${name}" in a browser, only ${NAMES.join(", ")}.`);
  }
  const refused: string[] = [];
  let reason = "asked for";
  const why = () => (refused.length > 0 ? refused.join(", and ") : reason);
  if (name === "auto" || name === "webgpu") {
    try {
      const chosen = chooseDevice(describeAdapter(await requestAdapter(gpu, options)));
      if (name === "auto") ({ reason } = chosen);
      if (name === "webgpu" || chosen.device === "webgpu")
        return { device: await openWebGpu(gpu, options), reason };
    } catch (error) {
      refused.push(refusal(error, gpu));
    }
  }
  if (name !== "cpu" && !hasSimd()) refused.push("this browser has no WebAssembly SIMD");
  else if (name !== "cpu") {
    for (const threads of [{}, { threads: 1 }]) {
      try {
        return { device: await openBrowserWasm(threads), reason: why() };
      } catch (error) {
        refused.push(refusal(error, gpu));
        if (!isCode(error, "T-THREADS")) break;
      }
    }
  }
  return { device: new CpuDevice(), reason: why() };
}
