import { randomUUID } from "node:crypto";
import { mkdir, readdir, realpath, rename, rm } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "./file-source.ts";
import { makeFolder } from "./make-folder.ts";

/** Files by which a folder is known as one that this project wrote, and may replace. */
const OURS = ["config.json", "adapter_config.json"];

async function namesIn(folder: string): Promise<string[] | null> {
  try {
    return await readdir(folder);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw fileError(folder, cause);
  }
}

const isIn = (inner: string, outer: string): boolean => inner === outer || inner.startsWith(`${outer}/`);

/**
 * Throws `L-OUTPUT` when something is at `path` that may not be replaced: anything, unless `overwrite` is set; then still
 * a folder that holds no model and no adapter, and what is read from (`inputs`).
 */
export async function checkOutput(
  path: string,
  overwrite: boolean,
  inputs: readonly string[],
): Promise<void> {
  const real = await realpath(path).catch(() => null);
  if (real === null) return;
  for (const input of inputs) {
    const source = await realpath(input).catch(() => null);
    if (source !== null && (isIn(source, real) || isIn(real, source))) {
      throw new SidenetError("L-OUTPUT", `${path} is where ${input} is read from. Write to another place.`);
    }
  }
  const names = await namesIn(path).catch(() => null); // null: a file
  if (names?.length === 0) return;
  if (!overwrite) {
    throw new SidenetError("L-OUTPUT", `${path} exists. Write to another place, or add --overwrite.`);
  }
  if (names && !OURS.some((name) => names.includes(name))) {
    throw new SidenetError(
      "L-OUTPUT",
      `${path} holds no model and no adapter, so it is not replaced. Empty it first.`,
    );
  }
}

/**
 * Fills a folder that appears under its name when `fill` is done, whole or not at all: `fill` gets a temporary folder beside
 * it. What stood there before is replaced at the end. Throws `L-FILE`, and what `fill` throws, with nothing left behind.
 */
export async function writeFolderAtomic<T>(path: string, fill: (folder: string) => Promise<T>): Promise<T> {
  const target = resolve(path);
  const beside = (kind: string) => join(dirname(target), `.${basename(target)}.${randomUUID()}.${kind}`);
  const temporary = beside("tmp");
  const replaced = beside("old");
  try {
    await makeFolder(dirname(target));
    await mkdir(temporary);
    const result = await fill(temporary);
    if ((await namesIn(target)) !== null) await rename(target, replaced);
    await rename(temporary, target);
    return result;
  } catch (cause) {
    throw cause instanceof SidenetError ? cause : fileError(path, cause);
  } finally {
    // What went wrong is told, and not that nothing could be removed where nothing could be written.
    for (const leftover of [temporary, replaced])
      await rm(leftover, { recursive: true, force: true }).catch(() => undefined);
  }
}
