import { randomUUID } from "node:crypto";
import { type FileHandle, open, rename, rm } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "./file-source.ts";

/**
 * Writes a file so that its name only ever shows the old content or the whole new one: a temporary file in the same
 * folder, flushed, renamed over the target, the folder flushed. On failure the temporary file is removed.
 * Throws `L-FILE` or `L-FILE-MISSING` (no such folder), and what making the content throws.
 */
export async function writeFileAtomic(
  path: string,
  content: string | Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): Promise<void> {
  const temporary = join(dirname(path), `.${basename(path)}.${randomUUID()}.tmp`);
  const chunks =
    typeof content === "string"
      ? [new TextEncoder().encode(content)]
      : content instanceof Uint8Array
        ? [content]
        : content;
  try {
    const file = await open(temporary, "wx");
    try {
      for await (const chunk of chunks) await writeFully(file, chunk);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(temporary, path);
  } catch (cause) {
    await rm(temporary, { force: true }).catch(() => undefined);
    throw cause instanceof SidenetError ? cause : fileError(path, cause); // what made the content may have failed
  }
  await syncFolder(dirname(path));
}

async function writeFully(file: FileHandle, chunk: Uint8Array): Promise<void> {
  for (let done = 0; done < chunk.length; ) {
    done += (await file.write(chunk, done, Math.min(chunk.length - done, 2 ** 30))).bytesWritten;
  }
}

/** Makes the rename itself survive a power cut; systems that cannot open a folder (Windows) order it themselves. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, "r").catch(() => null);
  try {
    await handle?.sync();
  } catch {
    // the file is complete under its name; only the moment of its durability is the system's
  } finally {
    await handle?.close();
  }
}
