/** What one fine-tuning run is told. */
import type { BaseStorage } from "../../base-storage.ts";
import type { MethodOptions } from "../../method.ts";
import type { MemoryOptions } from "../../trainer.ts";
import type { DataOptions } from "./load.ts";
import type { Existing, RunFile } from "./run-folder.ts";

/** What one fine-tuning run is told. */
export interface TrainRunOptions extends DataOptions {
  readonly model: string;
  readonly outputDir: string;
  readonly method: MethodOptions;
  readonly storage: Required<BaseStorage>;
  readonly memory: MemoryOptions;
  readonly steps: number;
  readonly batchSize: number;
  /** Batches whose gradients make one step. Default 1. */
  readonly gradientAccumulation?: number;
  readonly learningRate: number;
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
  /** Steps from one checkpoint to the next, one more at the end. Null, the default: no checkpoints. */
  readonly saveEvery?: number | null;
  /** Checkpoints that stay. Default 2, so that there is another one where the last is damaged. */
  readonly keep?: number;
  /** Steps from one evaluation of the records held back to the next; the best adapter is kept then. Null: at the end only. */
  readonly evalEvery?: number | null;
  /** Evaluations in a row without a better loss after which the run ends. Null: it does not. */
  readonly patience?: number | null;
  /** A step whose loss or gradient is not finite ends the run (default), or is left out. */
  readonly onNonFinite?: "stop" | "skip";
  /** File for the live bytes after each op of this process's second step, as JSON lines; null, the default: none. */
  readonly memoryTimeline?: string | null;
  /** Where the output folder holds a run. Default "refuse". */
  readonly existing?: Existing;
  /** The settings as `run.json` is to hold them. */
  readonly settings?: RunFile["settings"];
}
