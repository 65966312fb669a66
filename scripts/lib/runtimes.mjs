// What runs the packed packages: Node in several versions, Deno and Bun, each from the npm package of this platform's binary, which
// needs no install script.

import { existsSync } from "node:fs";
import { join } from "node:path";
import { installPackages } from "./packages.mjs";
import { requireSuccess, run, SetupError } from "./steps.mjs";

const { platform, arch } = process;
const EXE = platform === "win32" ? ".exe" : "";

/** By name: the package of the binary, where it is in there, and the arguments that run a file with all permissions. */
const RUNTIMES = {
  node: {
    from: `node-${platform === "win32" ? "win" : platform}-${arch}`,
    path: ["bin", `node${EXE}`],
    run: [],
  },
  deno: {
    from: `@deno/${platform}-${arch}${platform === "linux" ? "-glibc" : ""}`,
    path: [`deno${EXE}`],
    run: ["run", "--allow-all"],
  },
  bun: {
    from: `@oven/bun-${platform === "win32" ? "windows" : platform}-${arch === "arm64" ? "aarch64" : arch}`,
    path: ["bin", `bun${EXE}`],
    run: ["run"],
  },
};

const { execPath } = process;

/** The Node that runs this script, as a runtime. */
export const installedNode = () => ({
  label: `node ${process.version}`,
  path: execPath,
  run: [],
  node: execPath,
});

/**
 * A runtime such as "node@22", "node@24.1.0", "deno" or "bun@1", installed under `cache`. `node` is the Node to run npm with: itself,
 * or the one of this script. Throws `SetupError`.
 */
export function fetchRuntime(wanted, cache) {
  const [, name, version = "latest"] = /^(\w+)(?:@(\d+(?:\.\d+){0,2}))?$/.exec(wanted) ?? [];
  const runtime = Object.hasOwn(RUNTIMES, name ?? "") ? RUNTIMES[name] : null;
  if (runtime === null) {
    const names = Object.keys(RUNTIMES).join(", ");
    throw new SetupError(
      `"${wanted}" is no runtime.`,
      `Give one of ${names}, with or without a version: node@22.`,
    );
  }
  const folder = join(cache, `${name}-${version}`);
  const path = join(folder, "node_modules", runtime.from, ...runtime.path);
  if (!existsSync(path)) installPackages(folder, [`${runtime.from}@${version}`]);
  const { stdout } = requireSuccess(run(path, ["--version"]), `${wanted} does not start.`);
  const [found] = /\d+\.\d+\.\d+/.exec(stdout) ?? [version];
  return { label: `${name} v${found}`, path, run: runtime.run, node: name === "node" ? path : execPath };
}
