// npm packages: installed as package-lock.json says, or not.

import { readFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { run, SetupError, say } from "./steps.mjs";

/** Run `npm ci` in `root` unless node_modules already holds what package-lock.json lists. */
export function ensurePackages(root) {
  const wanted = readJson(join(root, "package-lock.json"));
  if (wanted === null) {
    throw new SetupError("package-lock.json is missing.", "It belongs to the repository.", [
      "git checkout package-lock.json",
    ]);
  }
  // npm's own note of what it installed. Times are no guide here: a git checkout renews them.
  const installed = readJson(join(root, "node_modules", ".package-lock.json"));
  if (installed !== null && isInstalled(wanted, installed)) return;

  say("installing the npm packages (npm ci) ...");
  const { output, failed } = npm(root, ["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
  if (!failed) return;
  throw new SetupError("The npm packages could not be installed.", `${failed}\n${output}`, ["npm ci"]);
}

/** Is everything that `wanted` (package-lock.json) lists in `installed` (node_modules/.package-lock.json)? */
export function isInstalled(wanted, installed) {
  return Object.entries(wanted.packages).every(([path, entry]) => {
    if (!path.includes("node_modules/")) return true; // the workspaces' own folders
    const found = installed.packages[path];
    if (found === undefined) return entry.optional === true; // binaries of other platforms
    return found.version === entry.version && found.integrity === entry.integrity;
  });
}

/** Run npm in `root`: the npm that runs this script, if one does, so its version and settings are the user's; on `node`. */
export function npm(root, args, node = process.execPath) {
  const script = process.env.npm_execpath;
  if (script?.endsWith("npm-cli.js")) return run(node, [script, ...args], { cwd: root });
  const windows = process.platform === "win32"; // there npm is a .cmd file, which only a shell can start
  const env = { ...process.env, PATH: `${dirname(node)}${delimiter}${process.env.PATH ?? ""}` };
  return run(windows ? "npm.cmd" : "npm", args, { cwd: root, shell: windows, env });
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if (error.code === "ENOENT") return null;
    throw new SetupError(`${path} cannot be read.`, error.message);
  }
}
