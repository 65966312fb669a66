/** What kernels are chosen by: the properties of a device, and its tile table. */

/** Thresholds between the kernels of a family. */
export interface Tiles {
  /** Rows of a block of matmul-rows, the matmul kernel for software drivers, from 9 rows on. */
  readonly rowsBlock: number;
  /** Up to this many rows of y, matmul-few runs instead of a blocked kernel. */
  readonly fewRows: number;
  /** matmul-block uses blocks of 128 x 128 if y has at least this many; else 64 x 64, which spread over more cores. */
  readonly minLargeBlocks: number;
  /**
   * Split-K is used while the blocks of all splits together stay within this number (of 128 x 128; four times as many of
   * 64 x 64); 0 disables it. Each block of 128 x 128 takes 64 KiB of workspace.
   */
  readonly splitKBlocks: number;
  /** From this many rows of y on, matmul with f16 or NF4 weights uses subgroup matrices. */
  readonly subgroupMatrixRows: number;
  /** From this many query rows per key head (tokens x query heads that share it) on, attention uses subgroup matrices; 0: never. */
  readonly subgroupMatrixQueries: number;
}

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
  /** Workgroup memory of a kernel. Not given: as much as the kernels want, which is more than WebGPU guarantees (16 KiB). */
  readonly maxWorkgroupBytes?: number;
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
};

/**
 * Whether to use the kernels named `*-rows`: they are for software drivers that compile a subgroup of eight lanes to SIMD
 * instructions, where loads are expensive and exchanging values between lanes is almost free.
 */
export const hasEightLanes = (profile: DeviceProfile): boolean =>
  profile.adapterClass === "software" && profile.subgroups && profile.subgroupSize === 8;
