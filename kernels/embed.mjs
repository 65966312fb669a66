// Write dist/index.js and dist/index.d.ts: every .wgsl file of this folder as a string, keyed by file name.
// A browser cannot read files, so the kernels travel as a module; the .wgsl files stay the only source.

import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const HERE = dirname(fileURLToPath(import.meta.url));
const BANNER = "// Written by kernels/embed.mjs from the .wgsl files; edit those.\n";

/** Embeds the kernels of this folder into its dist/; returns their names, sorted. */
export function embedKernels() {
  const names = readdirSync(HERE)
    .filter((file) => file.endsWith(".wgsl"))
    .map((file) => file.slice(0, -".wgsl".length))
    .sort();
  const text = (name) => JSON.stringify(readFileSync(join(HERE, `${name}.wgsl`), "utf8"));
  const js = names.map((name) => `  ${JSON.stringify(name)}: ${text(name)},\n`).join("");
  const types = names.map((name) => `  readonly ${JSON.stringify(name)}: string;\n`).join("");

  const dist = join(HERE, "dist");
  mkdirSync(dist, { recursive: true });
  writeIfChanged(join(dist, "index.js"), `${BANNER}export const kernels = Object.freeze({\n${js}});\n`);
  writeIfChanged(
    join(dist, "index.d.ts"),
    `${BANNER}export declare const kernels: {\n${types}};\nexport type KernelName = keyof typeof kernels;\n`,
  );
  return names;
}

/** An unchanged file keeps its time, so `tsc -b` and watchers see no change; a rename never shows half a file. */
function writeIfChanged(path, text) {
  try {
    if (readFileSync(path, "utf8") === text) return;
  } catch (error) {
    if (error.code !== "ENOENT") throw error;
  }
  const temporary = `${path}.${process.pid}.tmp`;
  writeFileSync(temporary, text);
  renameSync(temporary, path);
}

if (process.argv[1] && import.meta.url === pathToFileURL(process.argv[1]).href) {
  console.error(`kernels: ${embedKernels().length} embedded`);
}
