/** The folder of a run: who may write to it, and what it remembers of how it was started. */
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../../external-input.ts";
import { ADAPTER_FILES } from "../../methods/encode-adapter.ts";
import { writeFileAtomic } from "../atomic-write.ts";
import { fileError } from "../file-source.ts";
import { readJsonFileIfExists, writeJsonFile } from "../json-file.ts";
import { makeFolder } from "../make-folder.ts";

/** What a run writes into its folder; a new run in the folder of an old one starts by removing it all. */
export const RUN_FILES = {
  /** How the run was started. */
  run: "run.json",
  checkpoints: "checkpoints",
  metrics: "metrics.jsonl",
  /** How it ended; one of the two. */
  summary: "summary.json",
  failure: "failure.json",
  profile: "profile.json",
  report: "report.html",
  adapterConfig: ADAPTER_FILES.config,
  adapterWeights: ADAPTER_FILES.weights,
} as const;

/** What to do where the folder holds a run already. */
export type Existing = "refuse" | "resume" | "overwrite";

const runFileSchema = z.looseObject({
  version: z.literal(1),
  /** The settings that the run was started with, by the names of the command line. */
  settings: z.record(z.string(), z.json()),
  sidenet: z.string(),
  device: z.string(),
  model: z.string(),
  started: z.string(),
  /** Values of the settings whose defaults depend on the model, by name. */
  defaults: z.record(z.string(), z.json()).default({}),
});
export type RunFile = z.infer<typeof runFileSchema>;

/** What a run was started with; null where the folder holds no run. Throws `L-RUN` for a file that is no run's. */
export async function readRunFile(folder: string): Promise<RunFile | null> {
  let json: unknown;
  try {
    json = await readJsonFileIfExists(join(folder, RUN_FILES.run));
  } catch (error) {
    if (!(error instanceof SidenetError) || error.code !== "L-JSON") throw error;
    throw new SidenetError("L-RUN", `${error.text} Start anew with --overwrite, or use another --output.`, {
      cause: error,
    });
  }
  if (json === undefined) return null;
  const path = join(folder, RUN_FILES.run);
  return checked(runFileSchema, json, (why) => {
    const text = `${path} was not written by this version of sidenet: ${why}. Use another --output.`;
    return new SidenetError("L-RUN", text);
  });
}

export async function writeRunFile(folder: string, run: RunFile): Promise<void> {
  await writeJsonFile(join(folder, RUN_FILES.run), run);
}

/**
 * Makes the folder, and makes sure that it can be written, before a model is read for minutes. Temporary files that a killed
 * process has left are removed. Throws `L-RUN-EXISTS` where it holds a run and `existing` is "refuse"; `L-OUTPUT` where, without
 * a run, it holds what a new one would replace, unless `existing` is "overwrite"; `L-FILE`, `L-DISK-FULL`.
 */
export async function openRunFolder(folder: string, existing: Existing): Promise<RunFile | null> {
  await makeFolder(folder);
  const run = existing === "overwrite" ? null : await readRunFile(folder); // what is replaced may be damaged
  if (run && existing === "refuse") {
    throw new SidenetError(
      "L-RUN-EXISTS",
      `${folder} holds a run already, started ${run.started}. Continue it with --resume, replace it with --overwrite, or choose ` +
        "another --output.",
    );
  }
  if (!run && existing !== "overwrite") await refuseForeignFiles(folder);
  await removeTemporaryFiles(folder);
  await removeTemporaryFiles(join(folder, RUN_FILES.checkpoints));
  await writeFileAtomic(join(folder, ".writable"), "");
  await rm(join(folder, ".writable"), { force: true });
  return existing === "resume" ? run : null;
}

/** Throws `L-OUTPUT` for files, such as another program's checkpoints, that `clearRunFolder` would remove. */
async function refuseForeignFiles(folder: string): Promise<void> {
  const names = await readdir(folder).catch((cause: unknown) => {
    throw fileError(folder, cause);
  });
  const ours: readonly string[] = Object.values(RUN_FILES);
  const lost = names.filter((name) => ours.includes(name));
  if (lost.length === 0) return;
  throw new SidenetError(
    "L-OUTPUT",
    `${folder} holds ${lost.join(", ")}, but no ${RUN_FILES.run}, so no run of sidenet: a new run would replace what is there. Choose ` +
      "another --output, or add --overwrite.",
  );
}

/** Removes what an earlier run has made. Only when a new one is ready to start: until then the old one is whole. */
export async function clearRunFolder(folder: string): Promise<void> {
  for (const name of Object.values(RUN_FILES)) await rm(join(folder, name), { recursive: true, force: true });
}

async function removeTemporaryFiles(folder: string): Promise<void> {
  const names = await readdir(folder).catch(() => []);
  for (const name of names) {
    if (/^\..+\.tmp$/.test(name)) await rm(join(folder, name), { force: true });
  }
}
