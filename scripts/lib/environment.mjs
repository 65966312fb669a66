// Environment that every child process of ours needs, in one place.

import { mkdirSync } from "node:fs";
import { homedir, tmpdir, userInfo } from "node:os";
import { join } from "node:path";

/**
 * Give XDG_RUNTIME_DIR a private folder where the system has set none (containers, root shells):
 * Mesa prints a warning on each start without it. Changes `process.env`, which child processes inherit.
 */
export function ensureRuntimeFolder() {
  if (process.env.XDG_RUNTIME_DIR || process.platform !== "linux") return;
  const folder = join(tmpdir(), `sidenet-runtime-${userInfo().uid}`);
  mkdirSync(folder, { recursive: true, mode: 0o700 }); // 0700: the XDG specification asks for a private folder
  process.env.XDG_RUNTIME_DIR = folder;
}

/** What is fetched once and kept: $SIDENET_CACHE, else $XDG_CACHE_HOME/sidenet, else ~/.cache/sidenet. */
export function cacheFolder() {
  const { SIDENET_CACHE, XDG_CACHE_HOME } = process.env;
  return SIDENET_CACHE || join(XDG_CACHE_HOME || join(homedir(), ".cache"), "sidenet");
}
