/** The part of the package that needs Node: Dawn, and opening a device by name. */
import { chooseDevice, type OpenedDevice } from "../choose-device.ts";
import { CpuDevice } from "../cpu/device.ts";
import { SidenetError } from "../errors.ts";
import { MetaDevice } from "../meta/device.ts";
import type { WebGpuDevice } from "../webgpu/device.ts";
import {
  type AdapterReport,
  describeAdapter,
  openWebGpu,
  requestAdapter,
  type WebGpuOptions,
} from "../webgpu/open.ts";
import { calmEventPump } from "./event-pump.ts";
import { readTileCache } from "./tile-cache.ts";
import { openNodeWasm } from "./wasm.ts";

export { chooseDevice, type OpenedDevice } from "../choose-device.ts";
export { tileCachePath, tileCacheText } from "./tile-cache.ts";
export { openNodeWasm } from "./wasm.ts";

/** Dawn aborts the process if this object is collected while a device lives. While it is referenced, Node does not exit. */
let dawn: GPU | null = null;

/** Dawn toggles from SIDENET_DAWN_FEATURES, for work on kernels ("dump_shaders"). Throws `T-DAWN-FEATURES` for malformed names. */
function featuresOfEnvironment(): string[] {
  const text = process.env.SIDENET_DAWN_FEATURES ?? "";
  const names = text.split(",").filter(Boolean);
  if (names.every((name) => /^[a-z0-9_]+$/.test(name))) return names;
  throw new SidenetError(
    "T-DAWN-FEATURES",
    `SIDENET_DAWN_FEATURES is "${text}", wanted names of Dawn's toggles with commas between them. Unset it for everyday use.`,
  );
}

/** Dawn's `navigator.gpu`. Throws `T-NO-DAWN` when the native module does not load, `T-DAWN-FEATURES`. */
async function loadDawn(): Promise<GPU> {
  if (dawn) return dawn;
  const features = ["allow_unsafe_apis", "vulkan_enable_f16_on_nvidia", ...featuresOfEnvironment()];
  try {
    const { create, globals } = await import("webgpu");
    calmEventPump(globals as Record<string, unknown>);
    // On NVIDIA, Dawn hides f16 without the first toggle, and quantization rounds timestamps to 65 µs.
    dawn ??= create([
      `enable-dawn-features=${features.join(",")}`,
      "disable-dawn-features=timestamp_quantization",
    ]); // another call may have come first meanwhile
    return dawn;
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SidenetError(
      "T-NO-DAWN",
      `Dawn (npm package "webgpu") does not load here: ${why}. Install the packages again (npm ci), with optional ones and for ` +
        "this system; --device wasm needs no Dawn.",
      { cause },
    );
  }
}

/**
 * Installs WebGPU where browser libraries expect it: `navigator.gpu` and the global flag constants. Throws
 * `T-NO-DAWN` when Dawn does not load.
 */
export async function installWebGpuGlobals(): Promise<void> {
  const gpu = await loadDawn();
  const { globals } = await import("webgpu");
  for (const [name, value] of Object.entries(globals)) {
    if (!(name in globalThis)) Object.defineProperty(globalThis, name, { value, configurable: true });
  }
  const navigator = (globalThis as { navigator?: object }).navigator ?? {
    userAgent: `Node.js/${process.versions.node.split(".")[0]}`, // as in later versions of Node
  };
  Object.defineProperty(navigator, "gpu", { value: gpu, configurable: true });
  Object.defineProperty(globalThis, "navigator", { value: navigator, configurable: true });
}

/** Releases Dawn, so that the process can exit. Dispose the devices first. */
export function releaseDawn(): void {
  dawn = null;
}

/**
 * Opens a WebGPU device through Dawn, with the tile table that `sidenet bench --tune` cached for this adapter, if any. Throws
 * `T-NO-DAWN`, `T-NO-ADAPTER` or `T-NO-DEVICE`.
 */
export async function openNodeWebGpu(options: WebGpuOptions = {}): Promise<WebGpuDevice> {
  const device = await openWebGpu(await loadDawn(), options);
  const tiles = readTileCache(device);
  if (tiles !== null) device.retile(tiles);
  return device;
}

/** Name, driver, features and limits of the adapter that Dawn chooses. Throws `T-NO-DAWN` or `T-NO-ADAPTER`. */
export async function describeNodeWebGpu(): Promise<AdapterReport> {
  return describeAdapter(await requestAdapter(await loadDawn()));
}

/** The values of `openDevice` and `--device`. */
export const DEVICE_NAMES = ["auto", "webgpu", "wasm", "cpu", "meta"] as const;
/** The name of a device, or "auto". */
export type DeviceName = (typeof DEVICE_NAMES)[number];

/**
 * Opens a device by name; `auto` chooses by `chooseDevice`. Throws `T-NO-DAWN`, `T-NO-ADAPTER` or `T-NO-DEVICE` for webgpu,
 * `T-WASM` or `T-THREADS` for wasm, `T-NAME` for any other name.
 */
export async function openDevice(name: DeviceName, options: WebGpuOptions = {}): Promise<OpenedDevice> {
  if (name === "auto") {
    const { device, reason } = chooseDevice(await adapterOrNull());
    return { device: (await openDevice(device, options)).device, reason };
  }
  const reason = "asked for";
  switch (name) {
    case "cpu":
      return { device: new CpuDevice(), reason };
    case "meta":
      return { device: new MetaDevice(), reason };
    case "wasm":
      return { device: await openNodeWasm(), reason };
    case "webgpu":
      return { device: await openNodeWebGpu(options), reason };
    default:
      throw new SidenetError("T-NAME", `there is no device "${name}", only ${DEVICE_NAMES.join(", ")}.`);
  }
}

async function adapterOrNull(): Promise<AdapterReport | null> {
  try {
    return await describeNodeWebGpu();
  } catch (error) {
    if (error instanceof SidenetError && ["T-NO-DAWN", "T-NO-ADAPTER"].includes(error.code)) return null;
    throw error;
  }
}
