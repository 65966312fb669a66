#!/usr/bin/env node
// The command lives in src/cli and runs from dist. This file is in the repository, so npm can link it
// before the first build, and its executable bit survives every later one.

import { existsSync } from "node:fs";

const main = new URL("../dist/cli/main.js", import.meta.url);
if (existsSync(main)) {
  await import(main.href);
} else {
  console.error("sidenet is not built yet. In a clone of the repository, run: npm run build");
  process.exitCode = 1;
}
