// Other versions of Node, from the npm package of this platform's binary, which needs no install script.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { installPackages } from "./packages.mjs";
import { requireSuccess, run, SetupError } from "./steps.mjs";

const WINDOWS = process.platform === "win32";

/** The Node that runs this script. */
export const installedNode = () => ({ path: process.execPath, version: process.version });

/** Node of a version such as "22" or "24.1.0", installed under `cache`. Throws `SetupError`. */
export function fetchNode(version, cache) {
  if (!/^\d+(\.\d+){0,2}$/.test(version)) {
    throw new SetupError(`"${version}" is not a version of Node.`, "Give a number such as 22 or 22.12.0.");
  }
  const name = `node-${WINDOWS ? "win" : process.platform}-${process.arch}`;
  const folder = join(cache, version);
  const path = join(folder, "node_modules", name, "bin", WINDOWS ? "node.exe" : "node");
  if (!existsSync(path)) installPackages(folder, [`${name}@${version}`]);
  const { stdout } = requireSuccess(run(path, ["--version"]), `Node ${version} does not start.`);
  return { path, version: stdout.trim() };
}
