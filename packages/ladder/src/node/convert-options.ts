/** Options, progress and result of a conversion. */
import type { CalibratedLayers } from "../calibration/calibrated-layers.ts";
import type { ModelTensor } from "../methods/model-tensors.ts";
import type { ModelConfig } from "../model/config.ts";
import type { CalibrationOptions } from "./calibration-rows.ts";
import type { HubOptions } from "./hub.ts";
import type { ModelFiles } from "./open-model.ts";

/** Types that matrices can be written in. */
export const CONVERT_TYPES = ["f32", "f16", "bf16", "nf4", "q8_0"] as const;
/** The name of such a type, as `--dtype` takes it. */
export type ConvertType = (typeof CONVERT_TYPES)[number];

/** What is converted, to what, and where it goes. */
export interface ConvertOptions {
  /** What `openModel` takes. */
  readonly model: string;
  /** A name that ends in .gguf, or a folder. */
  readonly output: string;
  /** Of matrices. In a GGUF file f32, f16 or q8_0, in a folder f32, f16, bf16 or nf4. */
  readonly type: ConvertType;
  /** Folder of an adapter that becomes part of the weights; null: none. */
  readonly adapter: string | null;
  /** Largest safetensors file; beyond it the weights are split, with an index. */
  readonly maxShardBytes: number;
  readonly overwrite: boolean;
  /** Text by which NF4 weights are chosen; null, the default: each weight is rounded to its nearest value. */
  readonly calibration?: CalibrationOptions | null;
  /** How a model on the hub is fetched. */
  readonly hub?: HubOptions;
}

/** What was written. */
export interface ConvertSummary {
  readonly model: string;
  readonly output: string;
  readonly format: "safetensors" | "gguf";
  readonly dtype: ConvertType;
  readonly parameters: number;
  readonly size_bytes: number;
  /** Names in the folder, or that of the one file. */
  readonly files: readonly string[];
  /** What the source has not, and the result therefore neither. */
  readonly missing: readonly string[];
  readonly warnings: readonly string[];
}

/** Called with the bytes written so far and in all. */
export type ConvertProgress = (doneBytes: number, totalBytes: number) => void;

/** Parts of an output that call `onProgress` with their bytes when they have been read. */
export function reporting<Part extends { readonly read: () => Promise<unknown> }>(
  parts: readonly Part[],
  sizeOf: (part: Part) => number,
  onProgress: ConvertProgress,
): Part[] {
  const total = parts.reduce((sum, part) => sum + sizeOf(part), 0);
  let done = 0;
  return parts.map((part) => ({
    ...part,
    async read() {
      const content = await part.read();
      done += sizeOf(part);
      onProgress(done, total);
      return content;
    },
  }));
}

/** A model with all that goes into its new files. */
export interface OutgoingModel {
  readonly files: ModelFiles;
  readonly config: ModelConfig;
  readonly tensors: readonly ModelTensor[];
  readonly type: ConvertType;
  /** Where the NF4 weights come from; null: each is rounded by itself. */
  readonly calibrated: CalibratedLayers | null;
}
