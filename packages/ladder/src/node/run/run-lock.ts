/** One process at a time writes to the folder of a run or a comparison. */
import { randomUUID } from "node:crypto";
import { readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { realpath, rm } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "../file-source.ts";
import { makeFolder, removeEmptyFolders } from "../make-folder.ts";
import { isOtherProcess } from "../other-process.ts";

const LOCK = ".lock";

/** Locks of this process. Another one with its number was left by an earlier process of that number. */
const own = new Set<string>();

/** The process named by a lock if it is alive; a process of another machine cannot be checked. */
function holder(path: string): number | null {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch {
    return null;
  }
  const [, pid, host] = /^(\d+) (.*)$/.exec(text) ?? [];
  return host === hostname() && isOtherProcess(Number(pid)) ? Number(pid) : null;
}

/**
 * Makes the folder of a run or a comparison this process's own, until the returned function is called, which also removes the
 * folder where it was made here and nothing was written to it. A killed process loses its lock. Throws `L-RUN-BUSY` where
 * another run of this process, or another process, writes to the folder, `L-FILE`, `L-DISK-FULL`.
 */
export async function lockRunFolder(folder: string): Promise<() => Promise<void>> {
  const made = await makeFolder(folder);
  const path = join(await realpath(folder), LOCK);
  const unlock = async () => {
    await rm(path, { force: true }).catch(() => undefined);
    own.delete(path);
    await removeEmptyFolders(made);
  };
  try {
    take(path, folder);
  } catch (cause) {
    if (cause instanceof SidenetError) throw cause; // another's lock stays
    await unlock();
    throw fileError(folder, cause);
  }
  return unlock;
}

/** Makes the lock. Synchronous, so that other processes see as little as possible of what is between its calls. */
function take(path: string, folder: string): void {
  if (own.has(path)) throw busy(folder, process.pid);
  while (!create(path)) {
    const pid = holder(path) ?? removeStale(path);
    if (pid !== null) throw busy(folder, pid);
  }
  own.add(path);
}

/** False if there is one. */
function create(path: string): boolean {
  try {
    writeFileSync(path, `${process.pid} ${hostname()}`, { flag: "wx" });
    return true;
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "EEXIST") return false;
    throw cause;
  }
}

/**
 * Removes a lock that a killed process has left. If another process did so just before and made its own, that gets its place
 * back, and its process is returned.
 */
function removeStale(path: string): number | null {
  const taken = `${path}-${randomUUID().slice(0, 8)}`;
  try {
    renameSync(path, taken);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw cause;
  }
  const pid = holder(taken);
  if (pid === null) rmSync(taken, { force: true });
  else renameSync(taken, path);
  return pid;
}

const busy = (folder: string, pid: number): SidenetError =>
  new SidenetError(
    "L-RUN-BUSY",
    `process ${pid} writes to ${folder}. Wait for its end, or choose another --output. (If that process is not sidenet, remove ` +
      `${join(folder, LOCK)}.)`,
  );
