// Runs once before the tests (vitest's globalSetup): embeds the kernels as they are now, and makes the folder that holds the
// files of all tests (test-folder.ts), which it removes after them.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { embedKernels } from "../kernels/embed.mjs";

export function setup({ provide }) {
  embedKernels();
  const folder = mkdtempSync(join(tmpdir(), "sidenet-tests-"));
  provide("testFolder", folder);
  return () => rmSync(folder, { recursive: true, force: true });
}
