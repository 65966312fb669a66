import { mkdir, rmdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "./file-source.ts";
import { targetOf } from "./temporary-path.ts";

/**
 * Makes a folder and its parents where they do not exist yet. Returns the folders that it made, the innermost first.
 * Throws `L-FILE`, `L-FILE-MISSING` or `L-DISK-FULL`.
 */
export async function makeFolder(folder: string): Promise<string[]> {
  try {
    return await makeAll(resolve(folder));
  } catch (cause) {
    throw cause instanceof SidenetError ? cause : fileError(folder, cause);
  }
}

/** Removes folders that `makeFolder` made, the innermost first, up to one that is not empty. */
export async function removeEmptyFolders(made: readonly string[]): Promise<void> {
  try {
    for (const folder of made) await rmdir(folder);
  } catch {} // not empty, or gone
}

/** Node's own recursive mkdir says "no such file" on a read-only file system, and never returns in /proc. */
async function makeAll(folder: string): Promise<string[]> {
  try {
    await mkdir(folder);
    return [folder];
  } catch (cause) {
    if (await isFolder(folder)) return [];
    const target = await targetOf(folder); // another path where `folder` is a link to nothing
    if (target !== folder) return makeAll(target);
    if ((cause as NodeJS.ErrnoException).code !== "ENOENT" || dirname(folder) === folder) throw cause;
    const parents = await makeAll(dirname(folder));
    try {
      await mkdir(folder);
      return [folder, ...parents];
    } catch (error) {
      if (!(await isFolder(folder))) throw error; // another process may have made it meanwhile
      return [];
    }
  }
}

const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
