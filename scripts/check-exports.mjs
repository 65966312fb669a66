// Checks the built packages as a user sees them: every entry of every exports map loads in Node and type-checks in a strict
// project without this workspace's settings, and publint and attw find no fault in the packed tarballs.
//
//   npm run check:exports      builds first; part of `npm run check`

import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { publint } from "publint";
import { formatMessage } from "publint/utils";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { listPublished, packPublished } from "./lib/published.mjs";
import { reportFailure, requireSuccess, run, SetupError } from "./lib/steps.mjs";

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

/** An op of the user's own: the types know the extents that its signature binds. */
const OWN_OP = `import { defineOp } from "@sidenet/tensor";
export const twice = defineOp({
  name: "twice",
  doc: "y = 2 x",
  sig: "x:f32[N..,C] bias?:f32[B] -> y:f32[N..,C]",
  reference({ x, y }, { N, C }) {
    for (let i = 0; i < N * C; i++) y[i] = 2 * (x[i] ?? 0);
  },
  kernel: (k, { x, y }, { N, C }) => k.run("twice/main", { bind: { x, y }, params: { C }, grid: N }),
  draw: (pick) => ({ dims: { N: pick.shape(9), C: pick.int(1, 9) } }),
  close: { rel: 0 },
  // @ts-expect-error: a call may leave out the bias, which alone binds B
  flops: ({ N, C, B }) => N * C * B,
});
`;

/** Writes a project that imports `entries`, in a folder from which they resolve as in an installed project. */
function writeConsumer(name, entries, options) {
  const folder = join(CACHE, name);
  mkdirSync(folder, { recursive: true });
  const imports = entries.map((entry, i) => `import * as entry${i} from "${entry}";\n`).join("");
  const uses = `console.log([${entries.map((_, i) => `entry${i}`).join(", ")}].length);\n`;
  writeFileSync(join(folder, "index.ts"), imports + uses);
  writeFileSync(join(folder, "own-op.ts"), OWN_OP);
  const compilerOptions = {
    strict: true,
    exactOptionalPropertyTypes: true,
    noUncheckedIndexedAccess: true,
    noEmit: true,
    skipLibCheck: false, // the declarations of these packages are what is checked
    module: "NodeNext",
    target: "ES2022",
    ...options,
  };
  writeFileSync(
    join(folder, "tsconfig.json"),
    JSON.stringify({ compilerOptions, files: ["index.ts", "own-op.ts"] }),
  );
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type: "module" }));
  return folder;
}

/** From an ES module, and from CommonJS, whose `require` refuses a module that awaits while it loads. */
function checkLoads(entry, folder) {
  for (const [type, load] of [
    ["module", `await import("${entry}")`],
    ["commonjs", `require("${entry}")`],
  ]) {
    const loaded = run(process.execPath, [`--input-type=${type}`, "-e", load], { cwd: folder });
    requireSuccess(loaded, `${entry} does not load by ${load}.`);
  }
}

function checkTypes(folder) {
  const tsc = join(ROOT, "node_modules", "typescript", "bin", "tsc");
  const result = run(process.execPath, [tsc, "-p", folder, "--pretty", "false"], { cwd: ROOT });
  requireSuccess(result, "The packages' types do not check in a user's project.");
}

/** publint: the files that package.json names exist in the tarball and have the stated module format. */
async function checkManifest({ name, tarball }) {
  const pack = { tarball: new Uint8Array(readFileSync(tarball)).buffer };
  const { messages, pkg } = await publint({ pack, strict: true });
  if (messages.length === 0) return;
  const lines = messages.map(
    (message) => `${message.type}: ${formatMessage(message, pkg, { color: false })}`,
  );
  throw new SetupError(`publint found faults in ${name}.`, lines.join("\n"));
}

/** attw: for every entry, Node and bundlers resolve types and code to the same module. */
function checkResolution({ name, tarball }) {
  const attw = join(ROOT, "node_modules", "@arethetypeswrong", "cli", "dist", "index.js");
  // esm-only: there is no CommonJS build on purpose, nor support for resolution without exports maps.
  const args = [attw, tarball, "--profile", "esm-only", "--format", "ascii", "--no-color", "--no-emoji"];
  requireSuccess(run(process.execPath, args, { cwd: ROOT }), `attw found faults in ${name}.`);
}

scriptOptions({});
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
