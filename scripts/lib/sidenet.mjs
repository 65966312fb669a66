// The sidenet command of this checkout, for scripts that read what it prints with --json.

import { join } from "node:path";
import { ROOT } from "./environment.mjs";
import { run } from "./steps.mjs";

/** The file that Node runs. It needs `npm run build`. */
export const SIDENET = join(ROOT, "packages/ladder/bin/sidenet.js");

/** The object on the last line of a program's output; null if there is none. */
export function lastJson(text) {
  try {
    return JSON.parse(text.trimEnd().split("\n").at(-1));
  } catch {
    return null;
  }
}

/** Runs `sidenet ...args --json`. Returns what `run` returns, and `result`: the printed object, or null. */
export function sidenet(args, options = {}) {
  const done = run(process.execPath, [SIDENET, ...args, "--json"], options);
  return { ...done, result: lastJson(done.stdout) };
}
