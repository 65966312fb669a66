// Look at the built packages as a user does: every entry of every exports map loads in Node, and type-checks in
// a strict project that has no settings of ours; publint and attw find nothing in what `npm pack` makes of them.
// `npm run check` runs this after a build.

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import { listPublished, packPublished } from "./lib/published.mjs";
import { reportFailure, run, SetupError } from "./lib/steps.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");

const CACHE = join(ROOT, "node_modules", ".cache");

function listEntries() {
  return listPublished(ROOT).flatMap(
    ({ manifest: { name, exports } }) =>
      Object.keys(exports)
        .filter((entry) => typeof exports[entry] !== "string") // files, not code: "./models/*"
        .map((entry) => name + entry.slice(1)), // "." and "./node"
  );
}

const IN_NODE = { lib: ["ES2023", "ESNext.Disposable"], types: ["node"] };
const IN_A_PAGE = { module: "ESNext", moduleResolution: "bundler", lib: ["ES2022", "DOM"], types: [] };

/** A project beside the packages, as `npm install` would lay it out. */
function writeConsumer(name, entries, options) {
  const folder = join(CACHE, name);
  mkdirSync(folder, { recursive: true });
  const imports = entries.map((entry, i) => `import * as entry${i} from "${entry}";\n`).join("");
  const uses = `console.log([${entries.map((_, i) => `entry${i}`).join(", ")}].length);\n`;
  writeFileSync(join(folder, "index.ts"), imports + uses);
  const compilerOptions = {
    strict: true,
    noEmit: true,
    skipLibCheck: false, // our declarations are what is checked here
    module: "NodeNext",
    target: "ES2022",
    ...options,
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files: ["index.ts"] }));
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module" }));
  return folder;
}

function checkLoads(entry, folder) {
  const { output, failed } = run(
    process.execPath,
    ["--input-type=module", "-e", `await import("${entry}")`],
    {
      cwd: folder,
    },
  );
  if (failed) throw new SetupError(`${entry} does not load.`, `${failed}\n${output}`);
}

function checkTypes(folder) {
  const tsc = join(ROOT, "node_modules", "typescript", "bin", "tsc");
  const { output } = run(process.execPath, [tsc, "-p", folder, "--pretty", "false"], { cwd: ROOT });
  // Other people's declarations may need a library (the DOM) that a user's project need not have.
  const ours = output.split("\n").filter((line) => line.includes("error TS") && !FOREIGN.test(line));
  if (ours.length > 0) {
    throw new SetupError("The packages' types do not check in a user's project.", ours.join("\n"));
  }
}

const FOREIGN = /^node_modules\/(?!\.cache\/consumer)/;

/** The package.json against the tarball's files: what is named is there, and is of the format that it says. */
async function checkManifest({ name, tarball }) {
  const pack = { tarball: new Uint8Array(readFileSync(tarball)).buffer };
  const { messages, pkg } = await publint({ pack, strict: true });
  if (messages.length === 0) return;
  const lines = messages.map(
    (message) => `${message.type}: ${formatMessage(message, pkg, { color: false })}`,
  );
  throw new SetupError(`publint found faults in ${name}.`, lines.join("\n"));
}

/** Types against code, entry by entry, as Node and bundlers resolve both. */
function checkResolution({ name, tarball }) {
  const attw = join(ROOT, "node_modules", "@arethetypeswrong", "cli", "dist", "index.js");
  // esm-only: there is no CommonJS build on purpose, and resolution without exports maps is of the time before them.
  const args = [attw, tarball, "--profile", "esm-only", "--format", "ascii", "--no-color", "--no-emoji"];
  const { output, failed } = run(process.execPath, args, { cwd: ROOT });
  if (failed) throw new SetupError(`attw found faults in ${name}.`, output);
}

try {
  const entries = listEntries();
  const folder = writeConsumer("consumer", entries, IN_NODE);
  const forPages = entries.filter((entry) => !entry.endsWith("/node"));
  for (const entry of entries) checkLoads(entry, folder);
  checkTypes(folder);
  checkTypes(writeConsumer("consumer-page", forPages, IN_A_PAGE));
  console.error(`exports: ${entries.length} entries load and type-check`);
  const packed = packPublished(ROOT, join(CACHE, "tarballs"));
  for (const one of packed) {
    await checkManifest(one);
    checkResolution(one);
  }
  console.error(`exports: ${packed.length} packages pass publint and attw`);
} catch (error) {
  reportFailure(error);
}
