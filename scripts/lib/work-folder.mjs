// A folder for the files that a script makes.

import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

/** Calls `body` with the path of a temporary folder, which is removed afterwards; with `keep`, of that folder, which stays. */
export async function withFolder(keep, body) {
  if (keep) {
    mkdirSync(keep, { recursive: true });
    return body(resolve(keep));
  }
  const folder = mkdtempSync(join(tmpdir(), "sidenet-"));
  try {
    return await body(folder);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}
