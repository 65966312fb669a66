/// <reference lib="esnext.disposable" preserve="true" />
export { firstNonFinite, type NonFinite } from "./anomaly.ts";
export { type BroadcastAxis, broadcastShape, joinAxes } from "./broadcasting.ts";
export { chooseDevice, type OpenedDevice } from "./choose-device.ts";
export { CpuDevice, type CpuPrecision } from "./cpu/device.ts";
export { Device, type DeviceKind, type TensorOptions } from "./device.ts";
export { type DType, elementBytes, type HostArray, isFloat, sizeBytes } from "./dtype.ts";
export { SidenetError } from "./errors.ts";
export {
  float16Table,
  float16ToFloat32,
  float32ToFloat16,
  fromFloat16Bits,
  roundToFloat16,
  toFloat16Bits,
} from "./float16.ts";
export {
  type Allocation,
  type BytesByCategory,
  CATEGORIES,
  type Category,
  formatBreakdown,
  MemoryAccount,
  type PeakReport,
} from "./memory.ts";
export { MetaDevice } from "./meta/device.ts";
export {
  type AnyOpRow,
  type AttrsOfRow,
  type Closeness,
  type Draw,
  defineOp,
  type Inferred,
  type InputNamesOf,
  type Io,
  type KernelCall,
  type KernelContext,
  type NumberRange,
  type OpDefinition,
  type OpMethod,
  type OpRow,
  type OutputNamesOf,
  type RowRange,
  type WindowPreference,
} from "./op.ts";
export { type BrowserDeviceName, openBrowserDevice } from "./open-browser-device.ts";
export type { GeluForm } from "./ops/activations.ts";
export type { AttentionAttrs } from "./ops/attention.ts";
export { concatAll, logSoftmax, repeat, sliceAll, topKValues } from "./ops/composed.ts";
export {
  type BinaryRow,
  binary,
  type ElementwiseRow,
  type UnaryRow,
  unary,
} from "./ops/elementwise-kernels.ts";
export {
  buildOps,
  type Execute,
  type OpName,
  type OpOrName,
  type Ops,
  type OpTable,
  opNames,
  opTable,
  rowOf,
} from "./ops/index.ts";
export { NF4_BLOCKS, type Nf4Blocks } from "./ops/nf4.ts";
export { STATE_BLOCK, stateMaps } from "./ops/optimizer-variants.ts";
export { ParamStore } from "./param-store.ts";
export { DEFAULT_PROFILE, type DeviceProfile, type Tiles } from "./profile.ts";
export { dynamicMap, NF4_LEVELS, NF4_MAP_AT, NF4_OFFSET_AT, nf4Table } from "./quant-maps.ts";
export { philox, Random } from "./random.ts";
export type { RepeatCall } from "./repeat-call.ts";
export { drawCase, type OpCase } from "./sample.ts";
export { formatShape, type Shape, sameShape, sizeOf } from "./shape.ts";
export type { Dims, DimsOf, InputDimsOf, Operand, Signature, TensorSpec } from "./signature.ts";
export { Tensor } from "./tensor.ts";
export { TestRandom } from "./test-random.ts";
export {
  areTiles,
  DEFAULT_TILES,
  defaultTiles,
  TILE_CANDIDATES,
  tilesOf,
  tunableTiles,
} from "./tiles.ts";
export { type MemorySample, recordTimeline } from "./timeline.ts";
export {
  caseDims,
  checkRow,
  closenessOf,
  compareOutcomes,
  findDifference,
  type Outcome,
  runCase,
} from "./verify.ts";
export { openBrowserWasm } from "./wasm/browser.ts";
export { WasmDevice } from "./wasm/device.ts";
export type { WasmOptions } from "./wasm/open.ts";
export type { WasmStatistics } from "./wasm/runtime.ts";
export { WebGpuDevice } from "./webgpu/device.ts";
export type { KernelTime } from "./webgpu/kernel-time.ts";
export {
  type AdapterReport,
  describeAdapter,
  openWebGpu,
  requestAdapter,
  type WebGpuOptions,
} from "./webgpu/open.ts";
export type { WebGpuType } from "./webgpu/webgpu-type.ts";
