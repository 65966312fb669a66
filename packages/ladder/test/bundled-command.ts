// The command as one file, so that tests run it as a process without a build that could be disturbed.
import { type ChildProcess, spawn } from "node:child_process";
import { cp, mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, defaultServerConditions } from "vite";

const PACKAGE = fileURLToPath(new URL("..", import.meta.url));

/** How a process ended, and what it wrote. */
interface Ended {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly out: string;
  readonly err: string;
}

export interface BundledCommand {
  /** For files of the test. */
  readonly folder: string;
  /** What Node runs. */
  readonly main: string;
  /** Starts the command; `onError` sees standard error as it comes. */
  start(args: readonly string[], onError?: (text: string, child: ChildProcess) => void): Running;
  remove(): Promise<void>;
}

interface Running {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
}

/** Bundles the sources into a folder of that name within the repository, where the packages that are not bundled resolve. */
export async function bundleCommand(name: string): Promise<BundledCommand> {
  const folder = fileURLToPath(new URL(`../../../node_modules/.cache/${name}`, import.meta.url));
  const main = join(folder, "dist", "cli", "main.js");
  await rm(folder, { recursive: true, force: true });
  await mkdir(folder, { recursive: true });
  await cp(join(PACKAGE, "package.json"), join(folder, "package.json"));
  await cp(join(PACKAGE, "assets"), join(folder, "assets"), { recursive: true });
  await build({
    configFile: false,
    logLevel: "error",
    ssr: { resolve: { conditions: ["source", ...defaultServerConditions] }, noExternal: [/^@sidenet\//] },
    build: {
      ssr: join(PACKAGE, "src", "cli", "main.ts"),
      outDir: join(folder, "dist", "cli"),
      target: "node20",
      rollupOptions: { output: { entryFileNames: "main.js" } },
    },
  });
  return {
    folder,
    main,
    start: (args, onError) => start(main, args, onError),
    remove: () => rm(folder, { recursive: true, force: true }),
  };
}

function start(
  main: string,
  args: readonly string[],
  onError?: (text: string, child: ChildProcess) => void,
): Running {
  const child = spawn(process.execPath, [main, ...args], { timeout: 60_000 });
  let out = "";
  let err = "";
  child.stdout.on("data", (chunk) => {
    out += chunk;
  });
  child.stderr.on("data", (chunk) => {
    err += chunk;
    onError?.(err, child);
  });
  const ended = new Promise<Ended>((resolve) => {
    child.on("close", (code, signal) => resolve({ code, signal, out, err }));
  });
  return { child, ended };
}
