/** What one fine-tuning run is told. */
import type { BaseStorage } from "../../base-storage.ts";
import type { MethodOptions } from "../../method.ts";
import type { LoopOptions } from "../../run/training-loop.ts";
import type { MemoryOptions } from "../../trainer.ts";
import type { DataOptions } from "./load.ts";
import type { Existing, RunFile } from "./run-folder.ts";

/** What one fine-tuning run is told. */
export interface TrainRunOptions extends DataOptions, LoopOptions {
  readonly model: string;
  readonly outputDir: string;
  readonly method: MethodOptions;
  readonly storage: Required<BaseStorage>;
  readonly memory: MemoryOptions;
  readonly batchSize: number;
  /** The highest. Default: `defaultLearningRate` of method and model. */
  readonly learningRate?: number | null;
  readonly warmupSteps: number;
  readonly schedule: "constant" | "linear" | "cosine";
  readonly weightDecay: number;
  readonly maxGradNorm: number;
  /** Training records that Fisher importance is measured on, where it is asked for. Default 16. */
  readonly calibration?: number;
  /** Order of the data. */
  readonly seed: number;
  /** Tokens of the samples before and after; 0: none. */
  readonly sampleTokens: number;
  /** Name the first op that makes a NaN or an infinity, at a price (`Device.detectAnomaly`). */
  readonly detectAnomaly?: boolean;
  /** Tokens of a row that several records share, attention inside each; null, the default: each has its own. */
  readonly packLength?: number | null;
  /** Records of like lengths go together. */
  readonly bucketByLength?: boolean;
  /** Checkpoints that stay. Default 2, so that there is another one where the last is damaged. */
  readonly keep?: number;
  /** File for the live bytes after each op of this process's second step, as JSON lines; null, the default: none. */
  readonly memoryTimeline?: string | null;
  /** Where the output folder holds a run. Default "refuse". */
  readonly existing?: Existing;
  /** The settings as `run.json` is to hold them. */
  readonly settings?: RunFile["settings"];
}
