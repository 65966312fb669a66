// Install the packages as a user does: tarballs of `npm pack` in an empty strict ESM TypeScript project outside this
// repository, whose program is type-checked and run, whose page Vite builds, and whose sidenet command trains.
//
//   npm run check:pack                          builds first; npm fetches what the packages depend on
//   npm run check:pack -- --node 22 --node 24   on these versions of Node as well, from npm
//
// Its own script, since `npm run check` works without a network.

import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build, createLogger } from "vite";
import { fetchNode, installedNode } from "./lib/node-versions.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { npm } from "./lib/packages.mjs";
import { packPublished } from "./lib/published.mjs";
import { reportFailure, run, SetupError } from "./lib/steps.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");

/** Ours of TypeScript, so that the project is checked by the compiler that made the declarations. */
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

/** For a page: no entry that needs Node. What comes of it needs no page to run. */
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
  lib: ["ES2023", "ESNext.Disposable", "DOM"], // @webgpu/types names the DOM
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

/** A build whose every warning is an error: Vite only warns of Node's modules in a page. */
async function buildStrictly(what, config) {
  const warnings = [];
  const customLogger = createLogger("silent");
  for (const level of ["warn", "warnOnce", "error"]) customLogger[level] = (text) => void warnings.push(text);
  await build({ ...config, customLogger, logLevel: "warn" });
  if (warnings.length > 0) throw new SetupError(`Vite warns of ${what}.`, warnings.join("\n"));
}

/** Builds the page. Returns the bundle's path. */
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

/** Builds the playground on the packed packages; npm run test:browser sees it at work on their sources. */
async function buildPlayground(project) {
  const [from, to] = [join(ROOT, "examples"), join(project, "examples")];
  for (const part of ["index.html", "src", "texts"].map((name) => join("playground", name)))
    cpSync(join(from, part), join(to, part), { recursive: true });
  cpSync(join(from, "data"), join(to, "data"), { recursive: true });
  const outDir = join(project, "playground");
  const configFile = join(from, "playground", "vite.config.ts"); // which finds Vite here
  await buildStrictly("the playground", {
    root: join(to, "playground"),
    configFile,
    build: { outDir, emptyOutDir: true },
  });
  const built = readdirSync(join(outDir, "assets"));
  if (!built.some((name) => name.endsWith(".safetensors")))
    throw new SetupError("The playground was built without its model.", built.join("\n"));
}

function step(what, { output, failed }) {
  if (failed) throw new SetupError(what, `${failed}\n${output}`);
}

/** The sidenet command of the project: a run of two steps, and what it says of this machine's GPU. */
function checkCommand(project, node) {
  const records = Array.from(
    { length: 6 },
    (_, i) => `${JSON.stringify({ text: `Mouse number ${i} ran.` })}\n`,
  );
  writeFileSync(join(project, "data.jsonl"), records.join(""));
  const sidenet = (...args) =>
    node([join("node_modules", "@sidenet", "ladder", "bin", "sidenet.js"), ...args, "--json"]);
  const settings = ["--model", "tiny-books", "--data", "data.jsonl", "--output", "run", "--device", "wasm"];
  const run = sidenet("train", ...settings, "--steps", "2", "--batch-size", "2", "--held-out", "2");
  step("The sidenet command of the packed packages does not train.", run);
  const { loss } = JSON.parse(run.stdout);
  if (loss.length !== 2 || !loss.every(Number.isFinite)) {
    throw new SetupError("The sidenet command trained something else.", run.stdout);
  }
  const doctor = sidenet("doctor");
  const { adapter } = JSON.parse(doctor.stdout);
  if (adapter === null) return "no WebGPU adapter here";
  step("WebGPU does not compute, though there is an adapter.", sidenet("doctor", "--device", "webgpu"));
  return `WebGPU on ${adapter.description || adapter.vendor}`;
}

/** A user's project on one version of Node. */
async function checkOn({ path, version }, project, tarballs) {
  const started = performance.now();
  const what = (text) => `${text} (Node ${version})`;
  writeProject(project, tarballs);
  // Vite sets NODE_ENV to production as it builds, and npm then leaves out what a project is developed with.
  const install = [
    "install",
    "--include=dev",
    "--no-audit",
    "--no-fund",
    "--prefer-offline",
    "--loglevel=error",
  ];
  step(what("The packed packages do not install."), npm(project, install, path));
  const node = (args) => run(path, args, { cwd: project });
  step(
    what("The packed packages do not type-check."),
    node([join("node_modules", "typescript", "bin", "tsc"), "-p", "."]),
  );
  for (const [kind, file] of [
    ["A program on the packed packages", join("dist", "index.js")],
    ["What Vite makes of a page with the packages", await buildPage(project)],
  ]) {
    const ran = node([file]);
    step(what(`${kind} does not run.`), ran);
    if (ran.stdout.trim() !== EXPECTED) {
      throw new SetupError(what(`${kind} computes something else.`), `${ran.stdout}, not ${EXPECTED}`);
    }
  }
  await buildPlayground(project);
  const gpu = checkCommand(project, node);
  const seconds = ((performance.now() - started) / 1000).toFixed(0);
  console.error(
    `pack: Node ${version}: installs, type-checks, runs, builds a page and the playground, trains; ${gpu} (${seconds} s)`,
  );
}

const values = scriptOptions({ node: { type: "string", multiple: true, default: [] } });
const folder = mkdtempSync(join(tmpdir(), "sidenet-pack-"));
try {
  const cache = join(ROOT, "node_modules", ".cache", "node");
  const nodes = [installedNode(), ...values.node.map((version) => fetchNode(version, cache))];
  const tarballs = packPublished(ROOT, join(folder, "tarballs"));
  for (const node of nodes) await checkOn(node, join(folder, `project-${node.version}`), tarballs);
} catch (error) {
  reportFailure(error);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
