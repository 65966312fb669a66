// Running npm: installs of this checkout, and of single packages into a cache.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { delimiter, dirname, join } from "node:path";
import { requireSuccess, run, SetupError, say } from "./steps.mjs";

/** Runs `npm ci` in `root` unless node_modules already holds what package-lock.json lists. */
export function ensurePackages(root) {
  const wanted = readJson(join(root, "package-lock.json"));
  if (wanted === null) {
    throw new SetupError("package-lock.json is missing.", "It belongs to the repository.", [
      "git checkout package-lock.json",
    ]);
  }
  // npm records here what it installed. File times would not do: a git checkout changes them.
  const installed = readJson(join(root, "node_modules", ".package-lock.json"));
  if (installed !== null && isInstalled(wanted, installed)) return;

  say("installing the npm packages (npm ci) ...");
  const done = npm(root, ["ci", "--no-audit", "--no-fund", "--loglevel=error"]);
  requireSuccess(done, "The npm packages could not be installed.", ["npm ci"]);
}

/** Installs npm packages into a folder of their own, without running their install scripts. Throws `SetupError`. */
export function installPackages(folder, packages) {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), '{ "private": true }\n');
  const options = ["--no-audit", "--no-fund", "--omit=optional", "--ignore-scripts", "--loglevel=error"];
  const done = npm(folder, ["install", ...options, ...packages]);
  requireSuccess(done, `npm could not install ${packages.join(" and ")}.`);
}

/** Whether `installed` (node_modules/.package-lock.json) has everything that `wanted` (package-lock.json) lists. */
export function isInstalled(wanted, installed) {
  return Object.entries(wanted.packages).every(([path, entry]) => {
    if (!path.includes("node_modules/")) return true; // the workspaces' own folders
    const found = installed.packages[path];
    if (found === undefined) return entry.optional === true; // binaries of other platforms
    return found.version === entry.version && found.integrity === entry.integrity;
  });
}

/**
 * Runs npm in `folder` on the Node at `node`. If npm runs this script, it is the same npm, which has the user's version and
 * settings.
 */
export function npm(folder, args, node = process.execPath) {
  const script = process.env.npm_execpath;
  if (script?.endsWith("npm-cli.js")) return run(node, [script, ...args], { cwd: folder });
  const windows = process.platform === "win32"; // npm is a .cmd file there, which only a shell can start
  const env = { ...process.env, PATH: `${dirname(node)}${delimiter}${process.env.PATH ?? ""}` };
  return run(windows ? "npm.cmd" : "npm", args, { cwd: folder, shell: windows, env });
}

function readJson(path) {
  try {
    return JSON.parse(readFileSync(path, "utf8"));
  } catch (error) {
    if (error.code === "ENOENT") return null;
    throw new SetupError(`${path} cannot be read.`, error.message);
  }
}
