/** What a run that failed leaves behind to say so: `failure.json`, and what its profile had by then. */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { z } from "zod";
import type { StepProfile } from "../../run/step-profile.ts";
import { writeFileAtomic } from "../atomic-write.ts";
import { readJsonFile } from "../json-file.ts";

const FAILURE = "failure.json";
const SUMMARY = "summary.json";

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
  const path = join(folder, FAILURE);
  let json: unknown;
  try {
    json = await readJsonFile(path);
  } catch (error) {
    if (error instanceof SidenetError && error.code === "L-FILE-MISSING") return null;
    throw error;
  }
  const parsed = failureSchema.safeParse(json);
  if (parsed.success) return parsed.data;
  throw new SidenetError("L-RUN", `${path} is not what a run writes: ${z.prettifyError(parsed.error)}.`);
}

/** Writes what can be written: the disk may be what failed, so nothing is thrown. */
export async function recordFailure(
  folder: string,
  error: unknown,
  steps: number,
  profile: StepProfile | null,
): Promise<RunFailure> {
  const code = error instanceof SidenetError ? error.code : "BUG";
  const text = error instanceof Error ? error.message : String(error);
  const message = text.startsWith(`[${code}] `) ? text.slice(`[${code}] `.length) : text;
  const failure = { code, message, steps, time: new Date().toISOString() };
  const write = (name: string, value: object) =>
    writeFileAtomic(join(folder, name), `${JSON.stringify(value, null, 2)}\n`).catch(() => undefined);
  await write(FAILURE, failure);
  await rm(join(folder, SUMMARY), { force: true }).catch(() => undefined); // of an earlier process
  if (profile) await write("profile.json", profile);
  return failure;
}

/** A run that goes on has not ended: removes what an earlier process wrote of its end. */
export async function forgetEnd(folder: string): Promise<void> {
  for (const name of [FAILURE, SUMMARY]) await rm(join(folder, name), { force: true });
}
