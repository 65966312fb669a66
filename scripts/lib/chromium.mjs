// A Chromium for the browser tests: the machine's own, or Debian's package.

import { accessSync, constants, existsSync } from "node:fs";
import { delimiter, join } from "node:path";
import { APT_ENV, WAIT_FOR_LOCK } from "./apt.mjs";
import { run, SetupError, say } from "./steps.mjs";

const COMMANDS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge"];
const PLACES = [
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
  "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe",
];

/** The path of a Chromium, or null: $SIDENET_CHROMIUM, what the PATH has, the usual places. */
export function findChromium() {
  const { SIDENET_CHROMIUM, PATH = "" } = process.env;
  if (SIDENET_CHROMIUM) return SIDENET_CHROMIUM;
  const onPath = COMMANDS.flatMap((name) => PATH.split(delimiter).map((folder) => join(folder, name)));
  return [...onPath, ...PLACES].find(isExecutable) ?? null;
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The path of a Chromium, installed if there is none and we may. Throws `SetupError` with the lines to run by hand. */
export function ensureChromium(install = true) {
  const found = findChromium();
  if (found !== null) return found;
  const what = "The browser tests need Chromium, and there is none.";
  const lines = ["apt-get update", "apt-get install -y --no-install-recommends chromium"];
  if (!existsSync("/usr/bin/apt-get")) {
    throw new SetupError(
      what,
      "This system has no apt-get. Install Chromium or Chrome by its own means, or set SIDENET_CHROMIUM to its path.",
    );
  }
  if (!install || process.getuid() !== 0) throw new SetupError(what, "That needs root.", lines);

  say("installing Chromium (apt-get) ...");
  for (const args of [["update"], ["install", "-y", "--no-install-recommends", "chromium"]]) {
    const { output, failed } = run("apt-get", [...WAIT_FOR_LOCK, ...args], { env: APT_ENV });
    if (failed && args[0] === "install") throw new SetupError(what, `${failed}\n${output}`, lines);
  }
  const installed = findChromium();
  if (installed !== null) return installed;
  throw new SetupError(
    what,
    "apt-get installed a package `chromium`, but it brought no command of that name.",
  );
}
