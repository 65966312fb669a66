/**
 * Checkpoints of a run, `checkpoints/step-000100.safetensors` and so on: one file each, so that a rename makes it appear
 * whole or not at all, with a checksum, so that what a disk has spoiled is found and not trained on.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import type { Checkpoint } from "../../formats/checkpoint.ts";
import { encodeSafetensors } from "../../formats/safetensors-write.ts";
import { type RunState, runStateSchema } from "../../training/run-state.ts";
import type { Trainer } from "../../training/trainer.ts";
import { readTrainerState, writeTrainerState } from "../../training/trainer-state.ts";
import type { RunCheckpoints } from "../../training/training-loop.ts";
import { writeFileAtomic } from "../atomic-write.ts";
import { fileError, openFileSource } from "../file-source.ts";
import { makeFolder } from "../make-folder.ts";
import { openSafetensorsFile } from "../safetensors-file.ts";
import { RUN_FILES } from "./run-folder.ts";

const FORMAT = "sidenet-checkpoint";

/** `step-` are whole states, `best-` the adapter alone as it was after that step. */
export type CheckpointKind = "step" | "best";

const fileName = (kind: CheckpointKind, step: number): string =>
  `${kind}-${String(step).padStart(6, "0")}.safetensors`;
const fileStep = (kind: CheckpointKind, name: string): number | null => {
  const step = Number(name.slice(kind.length + 1, -".safetensors".length));
  return Number.isInteger(step) && fileName(kind, step) === name ? step : null;
};

/** One file in the folder of checkpoints. */
export interface CheckpointFile {
  readonly step: number;
  readonly path: string;
}

/** The checkpoint that was restored, and the damaged ones that were skipped. */
export interface RestoredCheckpoint {
  readonly state: RunState;
  readonly path: string;
  readonly damaged: readonly string[];
}

/** The checkpoints in the folder of a run, as `LoopParts.checkpoints` takes them. */
export class Checkpoints implements RunCheckpoints {
  readonly #folder: string;
  readonly #keep: number;

  /** `keep`: how many of a run's latest checkpoints stay; the best one's adapter is not counted. */
  constructor(runFolder: string, keep: number) {
    this.#folder = join(runFolder, RUN_FILES.checkpoints);
    this.#keep = keep;
  }

  /** The latest first. Empty where there is no folder. */
  async list(kind: CheckpointKind = "step"): Promise<CheckpointFile[]> {
    const names = await readdir(this.#folder).catch((cause: NodeJS.ErrnoException) => {
      if (cause.code === "ENOENT") return [];
      throw fileError(this.#folder, cause);
    });
    return names
      .flatMap((name) => {
        const step = fileStep(kind, name);
        return step === null ? [] : [{ step, path: join(this.#folder, name) }];
      })
      .sort((a, b) => b.step - a.step);
  }

  /**
   * Writes a checkpoint and then removes those past `keep`, and best adapters that it does not name.
   * Returns its path. Throws `L-FILE` or `L-DISK-FULL`.
   */
  async save(trainer: Trainer, state: RunState): Promise<string> {
    const path = await this.#write(fileName("step", state.counters.step), trainer, state, true);
    const best = (await this.list("best")).filter(({ step }) => step !== state.best?.step);
    for (const old of [...(await this.list()).slice(this.#keep), ...best])
      await rm(old.path, { force: true });
    return path;
  }

  /** Saves the current adapter as the best so far; `state.best` has its step and loss. */
  async saveBest(trainer: Trainer, state: RunState): Promise<void> {
    await this.#write(fileName("best", state.counters.step), trainer, state, false);
  }

  /** Gives the trainer the adapter that was best after this step. Its moments stay as they are. */
  async restoreBest(trainer: Trainer, step: number): Promise<void> {
    await readInto(join(this.#folder, fileName("best", step)), trainer, false);
  }

  /**
   * Gives the trainer the latest checkpoint that is whole, and null where there is none at all. A damaged one is renamed, so
   * that it is in nobody's way and nothing is lost. Throws `L-CHECKPOINT` where every one is damaged, or is of another run, and
   * what reading and the device throw.
   */
  async restoreLatest(trainer: Trainer): Promise<RestoredCheckpoint | null> {
    const damaged: string[] = [];
    for (const { path } of await this.list()) {
      try {
        return { state: await readInto(path, trainer, true), path, damaged };
      } catch (error) {
        if (!(error instanceof SidenetError) || error.code !== DAMAGED) throw error;
        damaged.push(error.message);
        await rename(path, `${path}.damaged`).catch(() => {}); // on a disk that cannot be written it just stays
      }
    }
    if (damaged.length === 0) return null;
    throw new SidenetError(
      "L-CHECKPOINT",
      `no checkpoint in ${this.#folder} is whole: ${damaged.join(" ")} Start anew with --overwrite, or in another --output.`,
    );
  }

  async #write(name: string, trainer: Trainer, state: RunState, withMoments: boolean): Promise<string> {
    const tensors = await readTrainerState(trainer, withMoments);
    const json = JSON.stringify(state);
    const [header, ...data] = encodeSafetensors(tensors);
    const hash = createHash("sha256")
      .update(json)
      .update(entriesOf(header.subarray(8)));
    for (const chunk of data) hash.update(chunk);
    const metadata = { format: FORMAT, state: json, sha256: hash.digest("hex") };
    const path = join(this.#folder, name);
    await makeFolder(this.#folder);
    await writeFileAtomic(path, encodeSafetensors(tensors, metadata));
    return path;
  }
}

const DAMAGED = "L-CHECKPOINT-DAMAGED";
const damaged = (path: string, why: string, cause?: unknown): SidenetError =>
  new SidenetError(DAMAGED, `${path} is damaged: ${why}.`, { cause });

/** Throws `L-CHECKPOINT-DAMAGED`, or `L-CHECKPOINT` for another run's. */
async function readInto(path: string, trainer: Trainer, withMoments: boolean): Promise<RunState> {
  const checkpoint = await openSafetensorsFile(path).catch((cause: unknown) => {
    const safetensors = cause instanceof SidenetError && cause.code.startsWith("L-SAFETENSORS");
    throw safetensors ? damaged(path, "its header and its data do not belong together", cause) : cause;
  });
  try {
    const state = await verify(path, checkpoint);
    await writeTrainerState(trainer, checkpoint, withMoments);
    if (withMoments) trainer.counters = state.counters;
    return state;
  } finally {
    await checkpoint.close();
  }
}

async function verify(path: string, { metadata }: Checkpoint): Promise<RunState> {
  const json = metadata.get("state");
  if (metadata.get("format") !== FORMAT || json === undefined)
    throw damaged(path, "it is no checkpoint of a run");
  if ((await checksum(path, json)) !== metadata.get("sha256")) throw damaged(path, "its checksum is wrong");
  const state = runStateSchema.safeParse(JSON.parse(json));
  if (state.success) return state.data;
  throw new SidenetError(
    "L-CHECKPOINT",
    `${path} was written by another version of sidenet. Finish the run with that version, or start anew with --overwrite.`,
  );
}

/** The tensor entries of a header (names, types, shapes, offsets), without its metadata. */
function entriesOf(header: Uint8Array): string {
  const { __metadata__: _, ...entries } = JSON.parse(new TextDecoder().decode(header)) as Record<
    string,
    unknown
  >;
  return JSON.stringify(entries);
}

/** SHA-256 of the state, the header's tensor entries and all data. */
async function checksum(path: string, state: string): Promise<string> {
  const file = await openFileSource(path);
  let header: Uint8Array;
  try {
    const size = Buffer.from(await file.read(0, 8)).readBigUInt64LE();
    header = await file.read(8, Number(size)); // at most 100 MB, as it was opened
  } finally {
    await file.close();
  }
  const hash = createHash("sha256").update(state).update(entriesOf(header));
  const start = 8 + header.length;
  for await (const chunk of createReadStream(path, { start, highWaterMark: 2 ** 20 })) hash.update(chunk);
  return hash.digest("hex");
}
