import { mkdir, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { fileError } from "./file-source.ts";

/** Makes a folder and those above it, where they are not there yet. Throws `L-FILE`, `L-FILE-MISSING` or `L-DISK-FULL`. */
export async function makeFolder(folder: string): Promise<void> {
  try {
    await makeAll(resolve(folder));
  } catch (cause) {
    throw fileError(folder, cause);
  }
}

/** Node's own recursive mkdir says "no such file" on a read-only file system, and never returns in /proc. */
async function makeAll(folder: string): Promise<void> {
  try {
    await mkdir(folder);
  } catch (cause) {
    if (await isFolder(folder)) return;
    if ((cause as NodeJS.ErrnoException).code !== "ENOENT" || dirname(folder) === folder) throw cause;
    await makeAll(dirname(folder));
    await mkdir(folder).catch(async (error) => {
      if (!(await isFolder(folder))) throw error; // another process may have made it meanwhile
    });
  }
}

const isFolder = (path: string): Promise<boolean> =>
  stat(path).then(
    (stats) => stats.isDirectory(),
    () => false,
  );
