/** Options of a fine-tuning run: data, model, method and length. */

import type { FieldMapping } from "../../data/field-mapping.ts";
import type { QuestionTask } from "../../eval/tasks.ts";
import type { MethodOptions } from "../../methods/method.ts";
import type { BaseStorage } from "../../model/base-storage.ts";
import type { MemoryOptions } from "../../training/trainer.ts";
import type { LoopOptions } from "../../training/training-loop.ts";
import type { Existing, RunFile } from "./run-folder.ts";

/** A file of records, and how much of the training it is beside the others. */
export interface WeightedFile {
  readonly path: string;
  readonly weight: number;
}

/** What is trained on, and how it is put to the model. */
interface DataOptions {
  readonly data: readonly (string | WeightedFile)[]; // a file without a weight has weight 1
  readonly fields: FieldMapping;
  /** Files to evaluate with, instead of held-out records. */
  readonly evalData?: readonly string[];
  /** Rows of this task are learned: what `eval` asks, and the right answer. Null, the default: records as they are. */
  readonly task?: QuestionTask | null;
  /** Prompts and completions as plain text, the default, or as turns of the model's chat template. */
  readonly template?: "plain" | "chat";
  /** File of a chat template, in place of the model's. */
  readonly chatTemplate?: string | null;
  /** File of a text that stands before every record, which the frozen model reads once; null, the default: none. */
  readonly prefix?: string | null;
  /** Tokens a record is cut to; null: longer records than the model's context are refused. */
  readonly maxLength: number | null;
  /**
   * Held-out records from the end of the data, never trained on; below 1 a share of them, drawn by the seed; 0: none, and no
   * evaluations. Null, the default: a fifth, at most 16.
   */
  readonly heldOut?: number | null;
}

/** Options of a fine-tuning run. */
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
