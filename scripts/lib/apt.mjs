// Installing Debian packages.

import { existsSync } from "node:fs";
import { requireSuccess, run, SetupError, say } from "./steps.mjs";

const isRoot = () => process.getuid() === 0;

/** Runs apt-get without questions, waiting for another apt to end, as on a machine's first boot. */
function aptGet(...args) {
  const env = { ...process.env, DEBIAN_FRONTEND: "noninteractive" };
  return run("apt-get", ["-o", "DPkg::Lock::Timeout=300", ...args], { env });
}

/** Throws `SetupError` of `what` on systems without apt-get; `otherwise` says what to do there. */
export function requireApt(what, otherwise) {
  if (!existsSync("/usr/bin/apt-get")) throw new SetupError(what, `This system has no apt-get. ${otherwise}`);
}

/** Updates apt's lists if this process is root. A failure is only printed: one source of many may be broken. */
export function updateLists() {
  if (!isRoot()) return;
  const { output, failed } = aptGet("update");
  if (failed) say(`apt-get update: ${failed}; going on with the lists it has.\n${output}`);
}

/** `apt-get install` with these arguments: packages, and options before them. */
const installArguments = (args) => ["install", "-y", "--no-install-recommends", ...args];

/** The shell lines that install packages by hand. */
export const installLines = (...args) => [
  "sudo apt-get update",
  `sudo apt-get ${installArguments(args).join(" ")}`,
];

/** Throws `SetupError` of `what` with the `lines` to run by hand if this process is not root. */
export function requireRoot(what, lines) {
  if (!isRoot()) throw new SetupError(what, "Installing it needs root.", lines);
}

/** Installs packages. Throws `SetupError` of `what` with the `lines` to run by hand if that fails or this process is not root. */
export function aptInstall(what, args, lines = installLines(...args)) {
  requireRoot(what, lines);
  say(`apt-get install ${args.join(" ")} ...`);
  requireSuccess(aptGet(...installArguments(args)), what, lines);
}
