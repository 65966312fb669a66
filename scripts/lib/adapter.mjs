// Does Dawn find a WebGPU adapter here? Asked in a child process: a broken driver may take the process with it.

import { fileURLToPath } from "node:url";
import { run } from "./steps.mjs";

const PROBE = fileURLToPath(new URL("./adapter-probe.mjs", import.meta.url));
const PROBE_MS = 60_000;

/** `{ name }` of the adapter that Dawn would use; or `{ name: null, why }` with Dawn's own words. */
export function findAdapter() {
  const { stdout, output, failed } = run(process.execPath, [PROBE], { timeout: PROBE_MS });
  if (failed) return { name: null, why: `${failed}\n${output}`.trim() };
  const { name } = JSON.parse(stdout);
  return name === null ? { name, why: output.replace(stdout, "").trim() } : { name };
}
