// Asks Dawn for a WebGPU adapter, in a child process, since a broken driver can crash the process.

import { fileURLToPath } from "node:url";
import { run } from "./steps.mjs";

const PROBE = fileURLToPath(new URL("./adapter-probe.mjs", import.meta.url));
const PROBE_MS = 60_000;

/** `{ name }` of Dawn's default adapter; `{ name: null, why }` with Dawn's message if there is none. */
export function findAdapter() {
  const { stdout, output, failed } = run(process.execPath, [PROBE], { timeout: PROBE_MS });
  if (failed) return { name: null, why: `${failed}\n${output}`.trim() };
  const { name } = JSON.parse(stdout);
  return name === null ? { name, why: output.replace(stdout, "").trim() } : { name };
}
