// Bring a fresh clone to where it can run: npm packages, then a WebGPU adapter. `npm test` and `npm run demo`
// run this first; when all is well it costs a quarter of a second and prints one line.
//
//   node scripts/setup.mjs                 install what is missing
//   node scripts/setup.mjs --browser       and Chromium, for the browser tests; no adapter is needed for those
//   node scripts/setup.mjs --check-only    only say whether WebGPU has an adapter; install nothing
//   SIDENET_DEVICE=cpu                     no adapter is needed
//
// Plain Node without dependencies: it runs before there is a node_modules folder.

import { resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { findAdapter } from "./lib/adapter.mjs";
import { ensureChromium } from "./lib/chromium.mjs";
import { ensureRuntimeFolder } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { ensurePackages } from "./lib/packages.mjs";
import { reportFailure, SetupError, say } from "./lib/steps.mjs";
import { installVulkanDriver } from "./lib/vulkan-driver.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");
const NODE_MIN = [20, 19]; // below it the test runner does not start, and the oldest 20 lack Symbol.dispose

/** Set everything up. Returns the adapter's name, or null with SIDENET_DEVICE=cpu, where the CPU must do. */
export function setup({ install = true } = {}) {
  setupPackages(install);
  if (process.env.SIDENET_DEVICE === "cpu") return null;
  try {
    return ensureAdapter(install).name;
  } catch (error) {
    if (error instanceof SetupError) error.message += "\n\nTo go on without WebGPU, set SIDENET_DEVICE=cpu.";
    throw error;
  }
}

/** Node and the npm packages, for what needs no adapter. */
export function setupPackages(install = true) {
  const [major, minor] = process.versions.node.split(".").map(Number);
  if (major < NODE_MIN[0] || (major === NODE_MIN[0] && minor < NODE_MIN[1])) {
    throw new SetupError(
      `sidenet needs Node ${NODE_MIN.join(".")} or later.`,
      `This is Node ${process.versions.node}.`,
    );
  }
  ensureRuntimeFolder();
  if (install) ensurePackages(ROOT);
}

/** For the browser tests: the npm packages, and the path of a Chromium. */
export function setupBrowser({ install = true } = {}) {
  setupPackages(install);
  return ensureChromium(install);
}

function ensureAdapter(install) {
  const adapter = findAdapter();
  if (adapter.name !== null) return adapter;
  const noAdapter = "WebGPU finds no adapter.";
  if (!install) throw new SetupError(noAdapter, adapter.why, ["node scripts/setup.mjs"]);
  if (process.platform !== "linux") {
    throw new SetupError(noAdapter, `${adapter.why}\nAn update of the graphics driver may help.`);
  }
  return installVulkanDriver(adapter.why);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    const options = scriptOptions({ browser: false, "check-only": false });
    const install = !options["check-only"];
    if (options.browser) {
      say(`ready, Chromium at ${setupBrowser({ install })}`);
    } else {
      const name = setup({ install });
      say(name === null ? "ready, for the CPU only (SIDENET_DEVICE=cpu)" : `ready, WebGPU on ${name}`);
    }
  } catch (error) {
    reportFailure(error);
  }
}
