/** What a run that failed leaves behind to say so: `failure.json`, and what its profile had by then. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../../external-input.ts";
import type { StepProfile } from "../../training/step-profile.ts";
import { readJsonFileIfExists, writeJsonFile } from "../json-file.ts";
import { RUN_FILES } from "./run-folder.ts";

const failureSchema = z.looseObject({
  /** As errors have it; "BUG" for one that no error of ours was made for. */
  code: z.string(),
  message: z.string(),
  /** Done by then. */
  steps: z.int().min(0),
  /** ISO 8601. */
  time: z.string(),
});
/**
 * How a run failed.
 * @interface
 */
export type RunFailure = z.infer<typeof failureSchema>;

/** How a run failed; null where it did not. Throws `L-RUN` for a file that is no run's, `L-FILE`, `L-JSON`. */
export async function readFailure(folder: string): Promise<RunFailure | null> {
  const path = join(folder, RUN_FILES.failure);
  const json = await readJsonFileIfExists(path);
  if (json === undefined) return null;
  const refuse = (why: string) => new SidenetError("L-RUN", `${path} is not what a run writes: ${why}.`);
  return checked(failureSchema, json, refuse);
}

/** Writes what can be written: the disk may be what failed, so nothing is thrown. */
export async function recordFailure(
  folder: string,
  error: unknown,
  steps: number,
  profile: StepProfile | null,
): Promise<RunFailure> {
  const code = error instanceof SidenetError ? error.code : "BUG";
  const message =
    error instanceof SidenetError ? error.text : error instanceof Error ? error.message : String(error);
  const failure = { code, message, steps, time: new Date().toISOString() };
  const write = (name: string, value: object) =>
    writeJsonFile(join(folder, name), value).catch(() => undefined);
  await write(RUN_FILES.failure, failure);
  await rm(join(folder, RUN_FILES.summary), { force: true }).catch(() => undefined); // of an earlier process
  if (profile) await write(RUN_FILES.profile, profile);
  return failure;
}

/** Removes the summary or failure that an earlier process of a resumed run wrote. */
export async function forgetEnd(folder: string): Promise<void> {
  for (const name of [RUN_FILES.failure, RUN_FILES.summary]) await rm(join(folder, name), { force: true });
}
