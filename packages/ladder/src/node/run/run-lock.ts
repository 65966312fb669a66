/** One process at a time trains into a folder. */
import { readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "../file-source.ts";
import { makeFolder, removeEmptyFolders } from "../make-folder.ts";
import { isOtherProcess } from "../other-process.ts";

const LOCK = ".lock";

/** The process named by a lock if it is alive; a process of another machine cannot be checked. */
async function holder(path: string): Promise<number | null> {
  const [, pid, host] = /^(\d+) (.*)$/.exec(await readFile(path, "utf8").catch(() => "")) ?? [];
  return host === hostname() && isOtherProcess(Number(pid)) ? Number(pid) : null;
}

/**
 * Makes the folder of a run this process's own, until the returned function is called, which also removes the folder where
 * it was made here and nothing was written to it. A killed process loses its lock. Throws `L-RUN-BUSY` where another
 * process trains into the folder, `L-FILE`, `L-DISK-FULL`.
 */
export async function lockRunFolder(folder: string): Promise<() => Promise<void>> {
  const made = await makeFolder(folder);
  const path = join(folder, LOCK);
  const pid = await holder(path);
  if (pid !== null) {
    throw new SidenetError(
      "L-RUN-BUSY",
      `process ${pid} trains into ${folder}. Wait for its end, or choose another --output. (If that process is not sidenet, remove ${path}.)`,
    );
  }
  const removeLock = () => rm(path, { force: true }).catch(() => undefined);
  const unlock = async () => {
    await removeLock();
    await removeEmptyFolders(made);
  };
  await removeLock(); // left by a killed process
  try {
    await writeFile(path, `${process.pid} ${hostname()}`, { flag: "wx" });
  } catch (cause) {
    await unlock();
    throw fileError(folder, cause);
  }
  return unlock;
}
