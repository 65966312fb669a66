import { SidenetError } from "../errors.ts";
import type { DeviceProfile } from "../profile.ts";
import { WebGpuDevice } from "./device.ts";
import type { WebGpuType } from "./webgpu-type.ts";

/** Which adapter to request, and which of its features and limits to use. */
export interface WebGpuOptions {
  readonly powerPreference?: "low-power" | "high-performance";
  /** false: store f32 only, as on an adapter without `shader-f16`. */
  readonly f16?: boolean;
  /**
   * "f16": matmul with f16 or NF4 weights and attention may round their operands to f16, so that they can run on subgroup
   * matrices (sums stay f32). Default "f32": operands are never rounded.
   */
  readonly precision?: "f32" | "f16";
  /** false: pass kernel parameters in a uniform buffer, as on an adapter without immediates. */
  readonly immediates?: boolean;
  /** Lower limit on the bytes of a storage binding, to try the behaviour of a smaller adapter. */
  readonly maxBindingBytes?: number;
  /** Lower limit on the bytes of a kernel's workgroup memory, for the same purpose. Not below the 16 KiB that WebGPU guarantees. */
  readonly maxWorkgroupBytes?: number;
  /** Treat the adapter as one of this class, for instance to run a GPU's kernels on a software driver. */
  readonly adapterClass?: DeviceProfile["adapterClass"];
  /** false: reduce over a workgroup through workgroup memory only, as on an adapter without subgroups. */
  readonly subgroups?: boolean;
  /** Fill new memory with NaN. For tests. */
  readonly poison?: boolean;
}

/** Name, driver, features and limits of an adapter: what `doctor` prints. */
export interface AdapterReport {
  readonly vendor: string;
  readonly architecture: string;
  /** The adapter's name. */
  readonly description: string;
  /** The driver and its version, as it describes itself. */
  readonly driver: string;
  readonly software: boolean;
  readonly features: readonly string[];
  readonly limits: Readonly<Record<string, number>>;
}

const SUBGROUP_MATRIX = "chromium-experimental-subgroup-matrix" as GPUFeatureName; // not in the specification yet
const WANTED_FEATURES: readonly GPUFeatureName[] = [
  "shader-f16",
  "subgroups",
  "timestamp-query",
  SUBGROUP_MATRIX,
];
const WANTED_LIMITS = [
  "maxBufferSize",
  "maxStorageBufferBindingSize",
  "maxStorageBuffersPerShaderStage",
  "maxComputeWorkgroupStorageSize",
  "maxComputeInvocationsPerWorkgroup",
  "maxComputeWorkgroupSizeX",
] as const;

/** Workgroup memory of matmul-matrix.wgsl. attention-matrix.wgsl needs more (ops/attention-kernels.ts). */
const SUBGROUP_MATRIX_WORKGROUP_BYTES = 24576;

const isSoftware = (info: GPUAdapterInfo): boolean =>
  info.isFallbackAdapter ||
  /llvmpipe|lavapipe|swiftshader|software|WARP/i.test(
    `${info.device} ${info.description} ${info.architecture}`,
  );

/** A browser may tell little of its adapter, or nothing; some give the PCI numbers of device and vendor, which name nothing. */
const labelOf = (info: GPUAdapterInfo): string => {
  const [device, description, vendor, architecture] = [
    info.device,
    info.description,
    info.vendor,
    info.architecture,
  ].map((text) => (/^(0x[\da-f]+|\d+)$/i.test(text) ? "" : text));
  return device || description || `${vendor} ${architecture}`.trim() || "unnamed GPU";
};

/** Requests an adapter. Throws `T-NO-ADAPTER` with a message that says what to install or enable. */
export async function requestAdapter(
  gpu: WebGpuType<"GPU"> | undefined,
  options: WebGpuOptions = {},
): Promise<WebGpuType<"GPUAdapter">> {
  if (gpu === undefined) {
    throw new SidenetError(
      "T-NO-ADAPTER",
      "this browser has no WebGPU (navigator.gpu is missing). Use a current Chrome, Edge, Safari or Firefox over https.",
    );
  }
  const { powerPreference = "high-performance" } = options;
  const adapter = await gpu.requestAdapter({ powerPreference });
  if (adapter) return adapter;
  throw new SidenetError(
    "T-NO-ADAPTER",
    "WebGPU finds no adapter. On Linux install a Vulkan driver: your GPU's own, or Mesa >= 23 (mesa-vulkan-drivers) for a " +
      "software one. `sidenet doctor` shows what is installed; --device wasm needs no adapter.",
  );
}

/** Describes an adapter. */
export function describeAdapter(adapter: WebGpuType<"GPUAdapter">): AdapterReport {
  const limits: Record<string, number> = {};
  for (const name in adapter.limits)
    limits[name] = adapter.limits[name as keyof GPUSupportedLimits] as number;
  return {
    vendor: adapter.info.vendor,
    architecture: adapter.info.architecture,
    description: labelOf(adapter.info),
    driver: adapter.info.description,
    software: isSoftware(adapter.info),
    features: [...adapter.features].sort(),
    limits,
  };
}

/**
 * Whether the device fits matmul-matrix.wgsl: subgroup matrices of 16 x 16 x 16, f16 into f32, subgroups of 32, and its
 * workgroup memory.
 */
function hasSubgroupMatrices(adapter: GPUAdapter, device: GPUDevice): boolean {
  const info = adapter.info as GPUAdapterInfo & {
    subgroupMatrixConfigs?: Iterable<{
      M: number;
      N: number;
      K: number;
      componentType: string;
      resultComponentType: string;
    }>;
  };
  const needed: GPUFeatureName[] = ["shader-f16", "subgroups", SUBGROUP_MATRIX];
  return (
    needed.every((feature) => device.features.has(feature)) &&
    info.subgroupMinSize === 32 &&
    info.subgroupMaxSize === 32 &&
    device.limits.maxComputeWorkgroupStorageSize >= SUBGROUP_MATRIX_WORKGROUP_BYTES &&
    [...(info.subgroupMatrixConfigs ?? [])].some(
      ({ M, N, K, componentType, resultComponentType }) =>
        M === 16 && N === 16 && K === 16 && componentType === "f16" && resultComponentType === "f32",
    )
  );
}

/** Reductions combine the sums of subgroups by `subgroup_id`, a built-in value that was added to WGSL later. */
const SUBGROUP_ID = "subgroup_id";

function profileOf(gpu: GPU, adapter: GPUAdapter, device: GPUDevice, options: WebGpuOptions): DeviceProfile {
  const { info } = adapter;
  const integrated = /intel|apple|qualcomm|arm/i.test(info.vendor);
  return {
    adapterClass:
      options.adapterClass ?? (isSoftware(info) ? "software" : integrated ? "integrated" : "discrete"),
    f16: device.features.has("shader-f16"),
    subgroups:
      options.subgroups !== false &&
      device.features.has("subgroups") &&
      gpu.wgslLanguageFeatures.has(SUBGROUP_ID),
    subgroupSize: info.subgroupMaxSize ?? 32,
    subgroupMatrices: options.precision === "f16" && hasSubgroupMatrices(adapter, device),
    maxBindingBytes: Math.min(
      device.limits.maxStorageBufferBindingSize,
      options.maxBindingBytes ?? Number.POSITIVE_INFINITY,
    ),
    maxBufferBytes: device.limits.maxBufferSize,
    bindingAlignment: device.limits.minStorageBufferOffsetAlignment,
    maxWorkgroupsPerAxis: device.limits.maxComputeWorkgroupsPerDimension,
    maxWorkgroupBytes: device.limits.maxComputeWorkgroupStorageSize,
  };
}

/**
 * Opens a WebGPU device on an adapter of `gpu` (`navigator.gpu` in a page; `@sidenet/tensor/node` provides Dawn's).
 * Throws `T-NO-ADAPTER` or `T-NO-DEVICE`.
 */
export async function openWebGpu(
  gpu: WebGpuType<"GPU"> | undefined,
  options: WebGpuOptions = {},
): Promise<WebGpuDevice> {
  const adapter = await requestAdapter(gpu, options);
  const immediates =
    (options.immediates ?? true) &&
    gpu!.wgslLanguageFeatures.has("immediate_address_space") &&
    adapter.limits.maxImmediateSize >= 64;
  const requiredLimits: Record<string, number> = {};
  for (const name of WANTED_LIMITS) requiredLimits[name] = adapter.limits[name];
  const { maxWorkgroupBytes = Number.POSITIVE_INFINITY } = options;
  requiredLimits.maxComputeWorkgroupStorageSize = Math.min(
    adapter.limits.maxComputeWorkgroupStorageSize,
    maxWorkgroupBytes,
  );
  if (immediates) requiredLimits.maxImmediateSize = 64;
  const requiredFeatures = WANTED_FEATURES.filter(
    (feature) =>
      adapter.features.has(feature) &&
      (options.f16 !== false || (feature !== "shader-f16" && feature !== SUBGROUP_MATRIX)),
  );
  let device: GPUDevice;
  try {
    device = await adapter.requestDevice({ requiredFeatures, requiredLimits });
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new SidenetError("T-NO-DEVICE", `${labelOf(adapter.info)} gave no device: ${why}`, { cause });
  }
  return new WebGpuDevice(device, {
    label: labelOf(adapter.info),
    profile: profileOf(gpu!, adapter, device, options),
    immediates,
    poison: options.poison ?? false,
  });
}
