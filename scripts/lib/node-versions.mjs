// Other versions of Node, from npm: the package of this platform's binary, which needs no install script.

import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { npm } from "./packages.mjs";
import { run, SetupError } from "./steps.mjs";

const WINDOWS = process.platform === "win32";

/** The Node that runs this. */
export const installedNode = () => ({ path: process.execPath, version: process.version });

/** Node of a version such as "22" or "24.1.0", installed under `cache`. Throws a SetupError. */
export function fetchNode(version, cache) {
  if (!/^\d+(\.\d+){0,2}$/.test(version)) {
    throw new SetupError(`"${version}" is no version of Node.`, "Wanted a number such as 22, or 22.12.0.");
  }
  const name = `node-${WINDOWS ? "win" : process.platform}-${process.arch}`;
  const folder = join(cache, version);
  const path = join(folder, "node_modules", name, "bin", WINDOWS ? "node.exe" : "node");
  if (!existsSync(path)) {
    mkdirSync(folder, { recursive: true });
    writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
    const args = ["install", "--no-audit", "--no-fund", "--no-save", "--ignore-scripts", "--loglevel=error"];
    const { output, failed } = npm(folder, [...args, `${name}@${version}`]);
    if (failed) throw new SetupError(`Node ${version} could not be installed.`, `${failed}\n${output}`);
  }
  const { stdout, output, failed } = run(path, ["--version"]);
  if (failed) throw new SetupError(`Node ${version} does not start.`, `${failed}\n${output}`);
  return { path, version: stdout.trim() };
}
