// What is asked for amiss is told before any case is made; no Python is needed for it.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const SCRIPT = fileURLToPath(new URL("../random-golden.mjs", import.meta.url));

it.each([
  [["--ops", "x"], /--ops x: wanted a whole number/],
  [["--opps", "3"], /Unknown option '--opps'[\s\S]*There are --seed, --ops/],
  [["--models", "0"], /--adapters wants models/],
  [["--devices", "cuda"], /--devices cuda: there are cpu, webgpu, wasm/],
  [
    ["--python", "/no/such/python"],
    /--python \/no\/such\/python cannot[\s\S]*-m pip install torch numpy.*leave --python out/,
  ],
] as const)("random-golden.mjs %j is refused with a cure, and not by a trace", (args, message) => {
  const { status, stderr } = spawnSync(process.execPath, [SCRIPT, ...args], { encoding: "utf8" });
  expect(status).toBe(1);
  expect(stderr).toMatch(message);
  expect(stderr).not.toMatch(/\n\s+at |Traceback|usage:/);
});
