// Installs the packed packages as a user does, in an empty strict TypeScript project outside this repository: a program is
// type-checked and run, Vite builds a page and the playground, and the sidenet command trains.
//
//   npm run check:pack                                        builds first
//   npm run check:pack -- --runtime node@24 --runtime deno    also on these (node, deno, bun), which npm installs
//
// It needs a network for the packages' dependencies, so it is not part of `npm run check`.

import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build, createLogger } from "vite";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { npm } from "./lib/packages.mjs";
import { packPublished } from "./lib/published.mjs";
import { fetchRuntime, installedNode } from "./lib/runtimes.mjs";
import { reportFailure, requireSuccess, run, SetupError } from "./lib/steps.mjs";
import { withFolder } from "./lib/work-folder.mjs";

/** The project gets the version of TypeScript that made the declarations. */
const { devDependencies } = JSON.parse(readFileSync(join(ROOT, "package.json"), "utf8"));

const PROGRAM = `import { Tape } from "@sidenet/autograd";
import { decoderParameters } from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { CpuDevice, type Tensor } from "@sidenet/tensor";

const device = new CpuDevice();
const w: Tensor = device.tensor([1, 2, 3], [3]);
const tape = new Tape(device, [w]);
const gradient = tape.backward(tape.sum(tape.mul(w, w))).get(w);
const model = await openModel("tiny-books");
console.log(JSON.stringify([[...(await gradient!.read())], decoderParameters(model.config).length > 0]));
`;
const EXPECTED = "[[2,4,6],true]";

/** For a page, so without the entries for Node. The bundle runs in Node too. */
const PAGE = `import { Tape } from "@sidenet/autograd";
import { METHODS, Trainer } from "@sidenet/ladder";
import { CpuDevice, openBrowserWasm, openWebGpu } from "@sidenet/tensor";

const device = new CpuDevice();
const w = device.tensor([1, 2, 3], [3]);
const tape = new Tape(device, [w]);
const gradient = tape.backward(tape.sum(tape.mul(w, w))).get(w);
const usable = [Trainer, openBrowserWasm, openWebGpu].every((part) => typeof part === "function");
void gradient?.read().then((values) => console.log(JSON.stringify([[...values], usable && METHODS.length > 0])));
`;

const COMPILER_OPTIONS = {
  strict: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  module: "NodeNext",
  target: "ES2022",
  lib: ["ES2023", "ESNext.Disposable"],
  types: ["node"],
  outDir: "dist",
};

function writeProject(folder, tarballs) {
  mkdirSync(folder);
  const packages = Object.fromEntries(tarballs.map(({ name, tarball }) => [name, `file:${tarball}`]));
  const dev = (name) => [name, devDependencies[name]];
  const files = {
    "package.json": JSON.stringify({
      name: "a-users-project",
      private: true,
      type: "module",
      dependencies: packages,
      devDependencies: Object.fromEntries(["typescript", "@types/node"].map(dev)),
    }),
    "tsconfig.json": JSON.stringify({ compilerOptions: COMPILER_OPTIONS, files: ["index.ts", "page.ts"] }),
    "index.ts": PROGRAM,
    "page.ts": PAGE,
    "index.html": '<!doctype html><title>page</title><script type="module" src="./page.ts"></script>',
  };
  for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text);
}

/** Builds with Vite. Throws on any warning, since Vite only warns of Node's modules in a page. */
async function buildStrictly(what, config) {
  const warnings = [];
  const customLogger = createLogger("silent");
  for (const level of ["warn", "warnOnce", "error"]) customLogger[level] = (text) => void warnings.push(text);
  await build({ ...config, customLogger, logLevel: "warn" });
  if (warnings.length > 0) throw new SetupError(`Vite warns of ${what}.`, warnings.join("\n"));
}

/** Builds the page and returns the path of its bundle. */
async function buildPage(project) {
  const outDir = join(project, "page");
  await buildStrictly("the packages in a page", {
    root: project,
    configFile: false,
    build: { outDir, assetsDir: ".", chunkSizeWarningLimit: 4096, modulePreload: false }, // kB
  });
  const [bundle] = readdirSync(outDir).filter((name) => /^index.*\.js$/.test(name));
  return join(outDir, bundle);
}

/** Builds the playground with the packed packages; `npm run test:browser` tests it with their sources. */
async function buildPlayground(project) {
  const [from, to] = [join(ROOT, "examples"), join(project, "examples")];
  for (const part of ["index.html", "src", "texts"].map((name) => join("playground", name)))
    cpSync(join(from, part), join(to, part), { recursive: true });
  cpSync(join(from, "data"), join(to, "data"), { recursive: true });
  const outDir = join(project, "playground");
  const configFile = join(from, "playground", "vite.config.ts"); // imports Vite, so it has to be in this checkout
  await buildStrictly("the playground", {
    root: join(to, "playground"),
    configFile,
    build: { outDir, emptyOutDir: true },
  });
  const built = readdirSync(join(outDir, "assets"));
  if (!built.some((name) => name.endsWith(".safetensors")))
    throw new SetupError("The playground was built without its model.", built.join("\n"));
}

/** Trains two steps with the project's sidenet command. Returns what its doctor says of this machine's GPU. */
function checkCommand(project, start) {
  const records = Array.from(
    { length: 6 },
    (_, i) => `${JSON.stringify({ text: `Mouse number ${i} ran.` })}\n`,
  );
  writeFileSync(join(project, "data.jsonl"), records.join(""));
  const sidenet = (...args) =>
    start([join("node_modules", "@sidenet", "ladder", "bin", "sidenet.js"), ...args, "--json"]);
  const settings = ["--model", "tiny-books", "--data", "data.jsonl", "--output", "run", "--device", "wasm"];
  const train = sidenet("train", ...settings, "--steps", "2", "--batch-size", "2", "--held-out", "2");
  const { stdout } = requireSuccess(train, "The sidenet command of the packed packages does not train.");
  const { loss } = JSON.parse(stdout);
  if (loss.length !== 2 || !loss.every(Number.isFinite)) {
    throw new SetupError("sidenet train --steps 2 did not return two losses.", stdout);
  }
  const doctor = sidenet("doctor");
  const { adapter } = JSON.parse(doctor.stdout);
  if (adapter === null) return "no WebGPU adapter here";
  requireSuccess(
    sidenet("doctor", "--device", "webgpu"),
    "There is an adapter, but WebGPU does not compute.",
  );
  return `WebGPU on ${adapter.description || adapter.vendor}`;
}

/** Checks a user's project on one runtime. Its packages are installed and its types checked by Node. */
async function checkOn({ label, ...runtime }, project, tarballs) {
  const started = performance.now();
  const what = (text) => `${text} (${label})`;
  writeProject(project, tarballs);
  // include=dev: an earlier build here left NODE_ENV at production (Vite sets it), and npm would leave out devDependencies.
  const install = [
    "install",
    "--include=dev",
    "--no-audit",
    "--no-fund",
    "--prefer-offline",
    "--loglevel=error",
  ];
  requireSuccess(npm(project, install, runtime.node), what("The packed packages do not install."));
  const start = (args) => run(runtime.path, [...runtime.run, ...args], { cwd: project });
  const tsc = run(runtime.node, [join("node_modules", "typescript", "bin", "tsc"), "-p", "."], {
    cwd: project,
  });
  requireSuccess(tsc, what("The packed packages do not type-check."));
  for (const [kind, file] of [
    ["A program on the packed packages", join("dist", "index.js")],
    ["A page that Vite built on the packed packages", await buildPage(project)],
  ]) {
    const { stdout } = requireSuccess(start([file]), what(`${kind} does not run.`));
    if (stdout.trim() !== EXPECTED) {
      throw new SetupError(what(`${kind} prints a wrong result.`), `${stdout}, not ${EXPECTED}`);
    }
  }
  await buildPlayground(project);
  const gpu = checkCommand(project, start);
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.error(
    `pack: ${label}: installs, type-checks, runs, builds a page and the playground, trains; ${gpu} (${seconds} s)`,
  );
}

const values = scriptOptions({ runtime: { type: "string", multiple: true, default: [] } });
try {
  await withFolder(null, async (folder) => {
    const cache = join(ROOT, "node_modules", ".cache", "runtimes");
    const runtimes = [installedNode(), ...values.runtime.map((wanted) => fetchRuntime(wanted, cache))];
    const tarballs = packPublished(ROOT, join(folder, "tarballs"));
    for (const [i, runtime] of runtimes.entries())
      await checkOn(runtime, join(folder, `project-${i}`), tarballs);
  });
} catch (error) {
  reportFailure(error);
}
