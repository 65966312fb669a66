// Install a software Vulkan driver (Mesa's lavapipe) through apt, so that WebGPU runs without a graphics card.

import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { findAdapter } from "./adapter.mjs";
import { APT_ENV, WAIT_FOR_LOCK } from "./apt.mjs";
import { installArguments, MESA_MAJOR_MIN, planDriver, shellLines } from "./apt-sources.mjs";
import { run, SetupError, say } from "./steps.mjs";

/** Install the driver and return the adapter it gives; throws `SetupError` with the lines to run by hand. */
export function installVulkanDriver(whyNone) {
  const what = `WebGPU finds no adapter (${firstLine(whyNone)}), and no software Vulkan driver could be installed.`;
  if (!existsSync("/usr/bin/apt-get")) {
    throw new SetupError(
      what,
      `This system has no apt-get. Install Mesa's lavapipe, version ${MESA_MAJOR_MIN} or later, with its own package\n` +
        "manager (Fedora: mesa-vulkan-drivers; Arch: vulkan-swrast; Alpine: mesa-vulkan-swrast), and the\n" +
        "Vulkan loader (vulkan-loader, vulkan-icd-loader).",
    );
  }

  const root = process.getuid() === 0;
  if (root) updateLists();
  const plan = planDriver(readSystem());
  if (plan === null) {
    throw new SetupError(what, `No package source of this machine offers Mesa ${MESA_MAJOR_MIN} or later.`);
  }
  if (!root) throw new SetupError(what, "That needs root.", shellLines(plan));

  execute(plan, what);
  const adapter = findAdapter();
  if (adapter.name === null) {
    throw new SetupError(
      "The software Vulkan driver is installed, but WebGPU still finds no adapter.",
      `${adapter.why}\nIf VK_ICD_FILENAMES or VK_DRIVER_FILES is set, unset it.`,
    );
  }
  return adapter;
}

function readSystem() {
  const apt = (command, ...args) => run(command, args, { env: { ...process.env, LC_ALL: "C" } }).stdout;
  const policy = apt("apt-cache", "policy", "mesa-vulkan-drivers");
  const candidate = /^\s*Candidate: (\S+)/m.exec(policy)?.[1];
  return {
    osRelease: readFileSync("/etc/os-release", "utf8"),
    madison: apt("apt-cache", "madison", "mesa-vulkan-drivers"),
    candidate: candidate === undefined || candidate === "(none)" ? null : candidate,
    targets: apt("apt-get", "indextargets", "Created-By: Packages"),
    readFile: (path) => readFileSync(path, "utf8"),
  };
}

/** One broken source of many must not stop us: what apt says is shown, and the install is the judge. */
function updateLists() {
  const { output, failed } = run("apt-get", [...WAIT_FOR_LOCK, "update"], { env: APT_ENV });
  if (failed) say(`apt-get update: ${failed}; going on with the lists it has.\n${output}`);
}

function execute(plan, what) {
  const { source } = plan;
  if (source) {
    say(`adding the package source ${source.path}`);
    writeFileSync(source.path, source.text);
    updateLists();
  }
  say(`installing a software Vulkan driver${plan.release ? ` from ${plan.release}` : ""} (apt-get) ...`);
  const { output, failed } = run("apt-get", [...WAIT_FOR_LOCK, ...installArguments(plan)], { env: APT_ENV });
  if (failed) {
    if (source) rmSync(source.path); // leave the machine as it was
    throw new SetupError(what, `${failed}\n${output}`, shellLines(plan));
  }
}

function firstLine(text) {
  return text.split("\n")[0] || "no reason given";
}
