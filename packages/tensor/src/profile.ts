import type { Tiles } from "./tiles.ts";

/** What a device is like, as far as kernels and tile tables care. */
export interface DeviceProfile {
  /** `software`: a Vulkan driver on the processor. */
  readonly adapterClass: "software" | "integrated" | "discrete";
  /** f16 storage is available. */
  readonly f16: boolean;
  /** Threads of a subgroup add up values, and subgroups have numbers in WGSL. */
  readonly subgroups: boolean;
  readonly subgroupSize: number;
  readonly maxBindingBytes: number;
  readonly maxBufferBytes: number;
  /** A binding starts at a multiple of this many bytes. */
  readonly bindingAlignment: number;
  readonly maxWorkgroupsPerAxis: number;
  readonly maxStorageBindings: number;
  /**
   * Whether the adapter has subgroup matrices (tensor cores on NVIDIA) that multiply 16 x 16 x 16 f16 values into f32 sums in
   * subgroups of 32, and `WebGpuOptions.precision` allows their use.
   */
  readonly subgroupMatrices?: boolean;
  /** Which tiles products take; `defaultTiles` unless a tuner has found better ones. */
  readonly tiles?: Tiles;
  /** Ops run by WebAssembly kernels, whose workspace depends on the rows of a panel (wasm/kernels/library.ts). */
  readonly wasm?: { readonly panelRows: number };
  /** Ops run by their reference, which takes no workspace. */
  readonly reference?: boolean;
}

/** The limits that WebGPU guarantees, on a discrete GPU with f16: what `meta` assumes unless told otherwise. */
export const DEFAULT_PROFILE: DeviceProfile = {
  adapterClass: "discrete",
  f16: true,
  subgroups: true,
  subgroupSize: 32,
  maxBindingBytes: 2 ** 27,
  maxBufferBytes: 2 ** 28,
  bindingAlignment: 256,
  maxWorkgroupsPerAxis: 65535,
  maxStorageBindings: 8,
};

/**
 * Kernels named `*-rows` are written for subgroups of eight lanes that run one after the other, as a software driver has:
 * loads are dear there, and lanes exchange values for next to nothing.
 */
export const hasEightLanes = (profile: DeviceProfile): boolean =>
  profile.adapterClass === "software" && profile.subgroups && profile.subgroupSize === 8;
