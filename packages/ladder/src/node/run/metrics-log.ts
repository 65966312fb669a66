/** `metrics.jsonl`: a line for each step, evaluation and sample of a run (docs/training.md). */
import { type FileHandle, open, readFile } from "node:fs/promises";
import type { BytesByCategory } from "@sidenet/tensor";
import { writeFileAtomic } from "../atomic-write.ts";
import { fileError } from "../file-source.ts";

/** A text that a model continued. */
export interface Sample {
  readonly prompt: string;
  readonly text: string;
}

/** A line for a step. */
export interface StepMetrics {
  /** Counted from 0. */
  readonly step: number;
  /** Before the step's update; null where it was not finite. */
  readonly loss: number | null;
  /** Before clipping; null where it was not finite. */
  readonly grad_norm: number | null;
  readonly learning_rate: number;
  readonly tokens: number;
  readonly seconds: number;
  readonly tokens_per_second: number;
  readonly live_bytes: number;
  /** Peak since this process's first step, and its parts. */
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: BytesByCategory;
  /** The step changed nothing, as its loss or norm was not finite. */
  readonly skipped?: true;
}

/** A line for an evaluation after `step` steps. */
export interface EvalMetrics {
  readonly step: number;
  readonly eval_loss: number;
  readonly sample?: Sample;
}

/** A line of `metrics.jsonl`. */
export type MetricsLine = StepMetrics | EvalMetrics;

export const isEvaluation = (line: MetricsLine): line is EvalMetrics => "eval_loss" in line;

/** The lines of a file, empty where there is none. The last may be half written, and is left out then. Throws `L-FILE`. */
export async function readMetrics(path: string): Promise<MetricsLine[]> {
  const text = await readFile(path, "utf8").catch((cause: NodeJS.ErrnoException) => {
    if (cause.code === "ENOENT") return "";
    throw fileError(path, cause);
  });
  return text
    .split("\n")
    .slice(0, -1) // what follows the last line end is no whole line
    .flatMap((line) => {
      try {
        const value: unknown = JSON.parse(line);
        return value !== null && typeof value === "object" && "step" in value ? [value as MetricsLine] : [];
      } catch {
        return []; // a page that a power cut has left empty
      }
    });
}

/** The file of a run that is going on. */
export class MetricsLog {
  readonly #path: string;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.#path = path;
    this.#file = file;
  }

  /** Starts the file with lines of an earlier part of the run. Throws `L-FILE` or `L-DISK-FULL`. */
  static async open(path: string, before: readonly MetricsLine[]): Promise<MetricsLog> {
    await writeFileAtomic(path, before.map((line) => `${JSON.stringify(line)}\n`).join(""));
    try {
      return new MetricsLog(path, await open(path, "a"));
    } catch (cause) {
      throw fileError(path, cause);
    }
  }

  async append(line: MetricsLine): Promise<void> {
    await this.#try(() => this.#file.appendFile(`${JSON.stringify(line)}\n`));
  }

  /** Waits until the disk has it: a checkpoint never knows more steps than this file. */
  async flush(): Promise<void> {
    await this.#try(() => this.#file.datasync());
  }

  async close(): Promise<void> {
    await this.#file.close();
  }

  async #try(write: () => Promise<void>): Promise<void> {
    try {
      await write();
    } catch (cause) {
      throw fileError(this.#path, cause);
    }
  }
}
