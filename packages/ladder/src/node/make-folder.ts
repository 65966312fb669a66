import { mkdir } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { fileError } from "./file-source.ts";

/** Makes a folder and those above it, where they are not there yet. Throws `L-FILE`, `L-FILE-MISSING` or `L-DISK-FULL`. */
export async function makeFolder(folder: string): Promise<void> {
  try {
    await mkdir(folder, { recursive: true });
  } catch (cause) {
    throw fileError(folder, await reasonOf(resolve(folder), cause));
  }
}

/** On a read-only file system Node's recursive mkdir says that there is no such file; a plain one gives the reason. */
async function reasonOf(folder: string, cause: unknown): Promise<unknown> {
  if ((cause as NodeJS.ErrnoException).code !== "ENOENT") return cause;
  try {
    await mkdir(folder);
    return cause; // it can be made by now
  } catch (reason) {
    const isMissing = (reason as NodeJS.ErrnoException).code === "ENOENT" && dirname(folder) !== folder;
    return isMissing ? await reasonOf(dirname(folder), reason) : reason;
  }
}
