// The browsers of the browser tests: the machine's own, or Debian's packages.

import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { aptInstall, requireApt, updateLists } from "./apt.mjs";
import { SetupError } from "./steps.mjs";

const CHROMIUM = {
  name: "Chromium",
  variable: "SIDENET_CHROMIUM",
  aptPackage: "chromium",
  commands: ["chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "microsoft-edge"],
  places: [
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:\\Program Files\\Google\\Chrome\\Application\\chrome.exe",
    "C:\\Program Files (x86)\\Microsoft\\Edge\\Application\\msedge.exe",
  ],
};
const FIREFOX = {
  name: "Firefox",
  variable: "SIDENET_FIREFOX",
  aptPackage: "firefox-esr",
  commands: ["firefox", "firefox-esr"],
  places: [
    "/Applications/Firefox.app/Contents/MacOS/firefox",
    "C:\\Program Files\\Mozilla Firefox\\firefox.exe",
  ],
};

/** The path of a browser: what its variable says, else one on the PATH or in the usual places; null if there is none. */
function find({ variable, commands, places }) {
  const { [variable]: chosen, PATH = "" } = process.env;
  if (chosen) return chosen;
  const onPath = commands.flatMap((name) => PATH.split(delimiter).map((folder) => join(folder, name)));
  return [...onPath, ...places].find(isExecutable) ?? null;
}

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

/** The path of a browser, which is installed if there is none and `install` is true. Throws `SetupError`. */
function ensure(browser, install) {
  const { name, variable, aptPackage } = browser;
  const found = find(browser);
  if (found !== null) return found;
  const what = `The browser tests need ${name}, and there is none.`;
  if (!install)
    throw new SetupError(what, "It was not to be installed.", ["node scripts/setup.mjs --browser"]);
  requireApt(what, `Install ${name} by its own means, or set ${variable} to its path.`);
  updateLists();
  aptInstall(what, [aptPackage]);
  const installed = find(browser);
  if (installed !== null) return installed;
  throw new SetupError(
    what,
    `apt-get installed the package ${aptPackage}, but it brought no command of that name.`,
  );
}

/** The path of Chromium or another browser with its engine, installed if need be. Throws `SetupError`. */
export const ensureChromium = (install) => ensure(CHROMIUM, install);

/** The path of Firefox, installed if need be. Throws `SetupError`. */
export const ensureFirefox = (install) => ensure(FIREFOX, install);
