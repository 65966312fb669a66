import { type FileHandle, open, rename, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError, writeFully } from "./file-source.ts";
import { targetOf, withTemporary } from "./temporary-path.ts";

/** Whether `path` is a pipe or a device, which is written to as it is. /dev/stdout may be one that no other path leads to. */
export const isStream = (path: string): Promise<boolean> =>
  stat(path).then(
    (stats) => !stats.isFile() && !stats.isDirectory(),
    () => false,
  );

/**
 * Writes a file so that its name only ever shows the old content or the whole new one: a temporary file in the same
 * folder, flushed, renamed over the target, the folder flushed. On failure the temporary file is removed. A link stays and its
 * target is written; a pipe or a device such as /dev/stdout is written to as it is, until its reader has enough.
 * Throws `L-FILE` or `L-FILE-MISSING` (no such folder), and what making the content throws.
 */
export async function writeFileAtomic(
  path: string,
  content: string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): Promise<void> {
  try {
    if (await isStream(path)) {
      await writeContent(path, "w", content).catch((cause) => {
        if (cause.code !== "EPIPE") throw cause;
      });
      return;
    }
    const target = await targetOf(path);
    await withTemporary(target, "tmp", async (temporary) => {
      await writeContent(temporary, "wx", content, (file) => file.sync());
      await rename(temporary, target);
    });
    await syncFolder(dirname(target));
  } catch (cause) {
    throw cause instanceof SidenetError ? cause : fileError(path, cause); // what made the content may have failed
  }
}

async function writeContent(
  path: string,
  flags: string,
  content: Parameters<typeof writeFileAtomic>[1],
  finish?: (file: FileHandle) => Promise<void>,
): Promise<void> {
  const chunks =
    typeof content === "string"
      ? [new TextEncoder().encode(content)]
      : content instanceof Uint8Array
        ? [content]
        : content;
  const file = await open(path, flags);
  try {
    for await (const chunk of chunks) await writeFully(file, chunk);
    await finish?.(file);
  } finally {
    await file.close();
  }
}

/** Makes the rename itself survive a power cut; systems that cannot open a folder (Windows) order it themselves. */
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => null);
  try {
    await handle?.sync();
  } catch {
    // the file is complete under its name; only the moment of its durability is the system's
  } finally {
    await handle?.close();
  }
}
