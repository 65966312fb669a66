/** `metrics.jsonl`: a line for each step, evaluation and sample of a run (docs/training.md). */
import { type FileHandle, open, readFile } from "node:fs/promises";
import type { MetricsLine } from "../../training/metrics.ts";
import type { RunLog } from "../../training/training-loop.ts";
import { writeFileAtomic } from "../atomic-write.ts";
import { fileError } from "../file-source.ts";

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

/** The file of a run that is going on, as `LoopParts.log` takes it. */
export class MetricsLog implements RunLog {
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

  /** Writes a line. Throws `L-FILE` or `L-DISK-FULL`. */
  async append(line: MetricsLine): Promise<void> {
    await this.#try(() => this.#file.appendFile(`${JSON.stringify(line)}\n`));
  }

  /** Waits until the disk has it: a checkpoint never knows more steps than this file. */
  async flush(): Promise<void> {
    await this.#try(() => this.#file.datasync());
  }

  /** Closes the file. */
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
