// Installs a software Vulkan driver (Mesa's lavapipe) with apt, so that WebGPU runs without a graphics card.

import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { findAdapter } from "./adapter.mjs";
import { aptInstall, requireApt, requireRoot, updateLists } from "./apt.mjs";
import { driverPackages, MESA_MAJOR_MIN, planDriver, shellLines } from "./apt-sources.mjs";
import { run, SetupError, say } from "./steps.mjs";

/** Installs the driver and returns its adapter. Throws `SetupError` with the lines to run by hand. */
export function installVulkanDriver(whyNoAdapter) {
  const [reason] = whyNoAdapter.split("\n");
  const what = `WebGPU finds no adapter (${reason || "no reason given"}), and no software Vulkan driver could be installed.`;
  requireApt(
    what,
    `Install Mesa's lavapipe, version ${MESA_MAJOR_MIN} or later, with its own package\n` +
      "manager (Fedora: mesa-vulkan-drivers; Arch: vulkan-swrast; Alpine: mesa-vulkan-swrast), and the\n" +
      "Vulkan loader (vulkan-loader, vulkan-icd-loader).",
  );
  updateLists();
  const plan = planDriver(readSystem());
  if (plan === null) {
    throw new SetupError(what, `No package source of this machine offers Mesa ${MESA_MAJOR_MIN} or later.`);
  }
  install(plan, what);
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

function install(plan, what) {
  const { source } = plan;
  const lines = shellLines(plan);
  requireRoot(what, lines);
  if (source === null) return aptInstall(what, driverPackages(plan), lines);
  say(`adding the package source ${source.path}`);
  writeFileSync(source.path, source.text);
  try {
    updateLists();
    aptInstall(what, driverPackages(plan), lines);
  } catch (error) {
    rmSync(source.path); // leave the machine as it was
    throw error;
  }
}
