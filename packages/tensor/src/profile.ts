import type { Tiles } from "./tiles.ts";

/** Properties of a device that kernels and tile tables depend on. */
export interface DeviceProfile {
  /** `software`: a Vulkan driver that runs on the CPU. */
  readonly adapterClass: "software" | "integrated" | "discrete";
  /** f16 storage is available. */
  readonly f16: boolean;
  /** Subgroup operations are available, including `subgroup_id`. */
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
  /** The tile table; `defaultTiles` unless it was tuned. */
  readonly tiles?: Tiles;
  /** Set if ops run as WebAssembly kernels, whose workspace depends on the rows of a panel (wasm/kernels/library.ts). */
  readonly wasm?: { readonly panelRows: number };
  /** Whether ops run as their reference, which takes no workspace. */
  readonly reference?: boolean;
}

/** A discrete GPU with f16 and the limits that WebGPU guarantees: the default of `meta`. */
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
 * Whether to use the kernels named `*-rows`: they are for software drivers that compile a subgroup of eight lanes to SIMD
 * instructions, where loads are expensive and exchanging values between lanes is almost free.
 */
export const hasEightLanes = (profile: DeviceProfile): boolean =>
  profile.adapterClass === "software" && profile.subgroups && profile.subgroupSize === 8;
