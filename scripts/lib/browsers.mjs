// A Chromium for the browser tests: the machine's own, or Debian's package.

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { aptInstall, requireApt, updateLists } from "./apt.mjs";
import { SetupError } from "./steps.mjs";

const COMMANDS = ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge"];
const PLACES = [
  "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
  "/Applications/Chromium.app/Contents/MacOS/Chromium",
  "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
  "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe",
];

/** The path of a Chromium: $SIDENET_CHROMIUM, else one on the PATH or in the usual places; null if there is none. */
function findChromium() {
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

/** The path of a Chromium, which is installed if there is none and `install` is true. Throws `SetupError`. */
export function ensureChromium(install) {
  const found = findChromium();
  if (found !== null) return found;
  const what = "The browser tests need Chromium, and there is none.";
  if (!install)
    throw new SetupError(what, "It was not to be installed.", ["node scripts/setup.mjs --browser"]);
  requireApt(what, "Install Chromium or Chrome by its own means, or set SIDENET_CHROMIUM to its path.");
  updateLists();
  aptInstall(what, ["chromium"]);
  const installed = findChromium();
  if (installed !== null) return installed;
  throw new SetupError(
    what,
    "apt-get installed the package chromium, but it brought no command of that name.",
  );
}
