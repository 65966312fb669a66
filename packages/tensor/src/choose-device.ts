/** Which device is the best there is: in Node and in a page by the same rule. */
import type { Device } from "./device.ts";
import { hasSimd } from "./wasm/open.ts";
import type { AdapterReport } from "./webgpu/open.ts";

/** A device, and why it is that one. */
export interface OpenedDevice {
  readonly device: Device;
  readonly reason: string;
}

/** What `auto` means beside this adapter: a hardware GPU, else WebAssembly, else a software GPU, else the reference. */
export function chooseDevice(
  adapter: AdapterReport | null,
  simd: () => boolean = hasSimd,
): {
  readonly device: "webgpu" | "wasm" | "cpu";
  readonly reason: string;
} {
  if (adapter && !adapter.software) return { device: "webgpu", reason: "a hardware GPU" };
  const found = adapter
    ? `no hardware GPU, only the software adapter ${adapter.description}`
    : "no WebGPU adapter";
  if (simd()) return { device: "wasm", reason: found };
  const why = `${found}, and no WebAssembly SIMD`;
  return adapter ? { device: "webgpu", reason: why } : { device: "cpu", reason: why };
}
