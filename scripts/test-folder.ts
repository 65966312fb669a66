// Folders for the files of tests.

import { mkdtempSync } from "node:fs";
import { join } from "node:path";
import { inject } from "vitest";

declare module "vitest" {
  interface ProvidedContext {
    testFolder: string;
  }
}

/** A new folder, which is removed when all tests have ended. */
export const temporaryFolder = (): string => mkdtempSync(join(inject("testFolder"), "test-"));
