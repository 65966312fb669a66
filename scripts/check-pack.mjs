// Install the packages as a user does: tarballs of `npm pack` in an empty strict ESM TypeScript project outside this
// repository, whose program is type-checked and run, and whose page Vite builds.
//
//   npm run check:pack        builds first; npm fetches what the packages depend on
//
// Its own script, since `npm run check` works without a network.

import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { build, createLogger } from "vite";
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

/** Builds the page, every warning an error: Vite only warns of Node's modules in a page. Returns the bundle's path. */
async function buildPage(project) {
  const warnings = [];
  const customLogger = createLogger("silent");
  for (const level of ["warn", "warnOnce", "error"]) customLogger[level] = (text) => void warnings.push(text);
  const outDir = join(project, "page");
  await build({
    root: project,
    configFile: false,
    customLogger,
    logLevel: "warn",
    build: { outDir, assetsDir: ".", chunkSizeWarningLimit: 4096, modulePreload: false }, // kB
  });
  if (warnings.length > 0) throw new SetupError("Vite warns of the packages in a page.", warnings.join("\n"));
  const [bundle] = readdirSync(outDir).filter((name) => /^index.*\.js$/.test(name));
  return join(outDir, bundle);
}

function step(what, { output, failed }) {
  if (failed) throw new SetupError(what, `${failed}\n${output}`);
}

const folder = mkdtempSync(join(tmpdir(), "sidenet-pack-"));
try {
  const project = join(folder, "project");
  writeProject(project, packPublished(ROOT, join(folder, "tarballs")));
  step(
    "The packed packages do not install.",
    npm(project, ["install", "--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"]),
  );
  const node = (args) => run(process.execPath, args, { cwd: project });
  step(
    "The packed packages do not type-check.",
    node([join("node_modules", "typescript", "bin", "tsc"), "-p", "."]),
  );
  const ran = node([join("dist", "index.js")]);
  step("A program on the packed packages does not run.", ran);
  if (ran.stdout.trim() !== EXPECTED) {
    throw new SetupError(
      "A program on the packed packages computes something else.",
      `${ran.stdout}, not ${EXPECTED}`,
    );
  }
  const page = node([await buildPage(project)]);
  step("What Vite makes of a page with the packages does not run.", page);
  if (page.stdout.trim() !== EXPECTED) {
    throw new SetupError("In a page the packages compute something else.", `${page.stdout}, not ${EXPECTED}`);
  }
  const command = node([join("node_modules", "@sidenet", "ladder", "bin", "sidenet.js"), "--version"]);
  step("The sidenet command of the packed packages does not start.", command);
  console.error(
    `pack: the packages install, type-check, run and build a page in an empty project; sidenet ${command.stdout.trim()}`,
  );
} catch (error) {
  reportFailure(error);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
