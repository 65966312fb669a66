/**
 * Names for what is being written, until it gets its own name by a rename. They are removed whenever the process ends: at once
 * where it can still act (an error, a signal, `process.exit`), and by the next writer of the same target after a kill -9.
 */
import { randomUUID } from "node:crypto";
import { existsSync, renameSync, rmSync } from "node:fs";
import { readdir, readlink, realpath } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { isOtherProcess } from "./other-process.ts";

/** "tmp": the new content; "old": what the target was before, while the new content gets its name. */
type Kind = "tmp" | "old";

/** Names may have 255 bytes: what is left for the target's own name, of up to 3 bytes a letter. */
const MAX_LETTERS = 64;

/** Temporaries of this process, with their targets. */
const own = new Map<string, string>();

const SIGNALS = ["SIGINT", "SIGTERM", "SIGHUP"] as const;

/**
 * Where writing to `path` ends up: behind its links, so that those stay links. Throws `L-FILE` for a link into a folder that does
 * not exist.
 */
export async function targetOf(path: string): Promise<string> {
  try {
    return await realpath(path);
  } catch (cause) {
    const isMissing = (cause as NodeJS.ErrnoException).code === "ENOENT";
    const link = isMissing ? await readlink(path).catch(() => null) : null;
    if (link === null) return resolve(path);
    const target = resolve(await realpath(dirname(path)), link);
    if (existsSync(dirname(target))) return targetOf(target);
    throw new SidenetError(
      "L-FILE",
      `${path}: it is a link to ${target}, and there is no folder ${dirname(target)}. Is a disk not mounted? Make that folder, or ` +
        "choose another place.",
      { cause },
    );
  }
}

/** Calls `body` with a path beside `target`; whatever `body` leaves there is removed. */
export async function withTemporary<T>(
  target: string,
  kind: Kind,
  body: (temporary: string) => Promise<T>,
): Promise<T> {
  await discardLeftovers(target);
  const temporary = join(
    dirname(target),
    `${prefixOf(target)}${process.pid}-${randomUUID().slice(0, 8)}.${kind}`,
  );
  hold(temporary, target);
  try {
    return await body(temporary);
  } finally {
    discard(temporary, target);
    release(temporary);
  }
}

const prefixOf = (target: string): string => `.${basename(target).slice(0, MAX_LETTERS)}.`;

/** Removes what killed processes have left of this target. */
async function discardLeftovers(target: string): Promise<void> {
  const prefix = prefixOf(target);
  const names = await readdir(dirname(target)).catch((): string[] => []);
  for (const name of names) {
    if (!name.startsWith(prefix)) continue;
    const path = join(dirname(target), name);
    const pid = /^(\d+)-[0-9a-f]{8}\.(tmp|old)$/.exec(name.slice(prefix.length))?.[1];
    if (pid !== undefined && !own.has(path) && !isOtherProcess(Number(pid))) discard(path, target);
  }
}

/** Removes a temporary; the old content gets its name back where nothing has taken its place. Never throws. */
function discard(path: string, target: string): void {
  try {
    if (path.endsWith(".old") && existsSync(path) && !existsSync(target)) renameSync(path, target);
    else rmSync(path, { recursive: true, force: true });
  } catch {} // the error that led here is the one to report
}

function hold(temporary: string, target: string): void {
  if (own.size === 0) {
    process.on("exit", discardAll);
    for (const signal of SIGNALS) process.on(signal, onSignal);
  }
  own.set(temporary, target);
}

function release(temporary: string): void {
  own.delete(temporary);
  if (own.size > 0) return;
  process.off("exit", discardAll);
  for (const signal of SIGNALS) process.off(signal, onSignal);
}

function discardAll(): void {
  for (const [path, target] of own) discard(path, target);
}

/** Ends the process by the signal, as without this handler; where another handler decides, it does. */
function onSignal(signal: NodeJS.Signals): void {
  if (process.listenerCount(signal) > 1) return;
  discardAll();
  process.off(signal, onSignal);
  process.kill(process.pid, signal);
}
