/** The rule by which `auto` chooses a device, in Node and in a browser. */
import type { Device } from "./device.ts";
import { hasSimd } from "./wasm/open.ts";
import type { AdapterReport } from "./webgpu/open.ts";

/** A device and the reason for its choice. */
export interface OpenedDevice {
  readonly device: Device;
  readonly reason: string;
}

/** What `auto` means with this adapter: a hardware GPU, else WebAssembly, else a software GPU, else the reference. */
export function chooseDevice(
  adapter: AdapterReport | null,
  simd: () => boolean = hasSimd,
): {
  readonly device: "webgpu" | "wasm" | "cpu";
  readonly reason: string;
} {
  if (adapter && !adapter.software) return { device: "webgpu", reason: "a hardware GPU" };
  const found = adapter
    ? `no hardware GPU, only a software adapter (${adapter.description})`
    : "no WebGPU adapter";
  if (simd()) return { device: "wasm", reason: found };
  const why = `${found}, and no WebAssembly SIMD`;
  return adapter ? { device: "webgpu", reason: why } : { device: "cpu", reason: why };
}
