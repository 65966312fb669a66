// Installs what a fresh clone lacks: npm packages and, if WebGPU finds no adapter, a software driver. `npm test` and
// `npm run demo` run this first. If nothing is missing, it takes a quarter of a second and prints one line.
//
//   node scripts/setup.mjs                 npm packages and a WebGPU adapter
//   node scripts/setup.mjs --browser       these, and Chromium and Firefox, for the browser tests
//   node scripts/setup.mjs --check-only    installs nothing; says what is missing
//   SIDENET_DEVICE=cpu                     no adapter is needed
//
// Everything it imports works without dependencies, since it runs before there is a node_modules folder.

import { fileURLToPath } from "node:url";
import { findAdapter } from "./lib/adapter.mjs";
import { ensureChromium, ensureFirefox } from "./lib/browsers.mjs";
import { ensureRuntimeFolder, ROOT } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { ensurePackages } from "./lib/packages.mjs";
import { reportFailure, SetupError, say } from "./lib/steps.mjs";
import { installVulkanDriver } from "./lib/vulkan-driver.mjs";

const NODE_MIN = [20, 19]; // older versions lack what the test runner needs, and the oldest lack Symbol.dispose

/** Sets up npm packages and an adapter. Returns the adapter's name; null with SIDENET_DEVICE=cpu, which needs none. */
function setup(install) {
  setupPackages(install);
  if (process.env.SIDENET_DEVICE === "cpu") return null;
  try {
    return ensureAdapter(install).name;
  } catch (error) {
    if (error instanceof SetupError) error.message += "\n\nTo run without WebGPU, set SIDENET_DEVICE=cpu.";
    throw error;
  }
}

/** Checks the version of Node and installs the npm packages. */
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
      setupPackages(install);
      ensureAdapter(install); // Firefox has no software driver of its own
      say(`ready, Chromium at ${ensureChromium(install)}, Firefox at ${ensureFirefox(install)}`);
    } else {
      const name = setup(install);
      say(name === null ? "ready, for the CPU only (SIDENET_DEVICE=cpu)" : `ready, WebGPU on ${name}`);
    }
  } catch (error) {
    reportFailure(error);
  }
}
