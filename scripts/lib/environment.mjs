// Folders that scripts share.

import { mkdirSync } from "node:fs";
import { homedir, tmpdir, userInfo } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

/** The root of this checkout. */
export const ROOT = resolve(fileURLToPath(import.meta.url), "../../..");

/**
 * Sets XDG_RUNTIME_DIR to a private folder if it is not set (in containers and root shells), since Mesa prints a warning
 * without it. Child processes inherit it.
 */
export function ensureRuntimeFolder() {
  if (process.env.XDG_RUNTIME_DIR || process.platform !== "linux") return;
  const folder = join(tmpdir(), `sidenet-runtime-${userInfo().uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 }); // 0700: the XDG specification asks for a private folder
  process.env.XDG_RUNTIME_DIR = folder;
}

/** The folder of downloads that are kept: $SIDENET_CACHE, else $XDG_CACHE_HOME/sidenet, else ~/.cache/sidenet. */
export function cacheFolder() {
  const { SIDENET_CACHE, XDG_CACHE_HOME } = process.env;
  return SIDENET_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "sidenet");
}
