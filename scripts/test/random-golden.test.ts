// What is asked for amiss is told before any case is made; no Python is needed for it.
import { spawnSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { expect, it } from "vitest";

const SCRIPT = fileURLToPath(new URL("../random-golden.mjs", import.meta.url));

const refused = (args: readonly string[]) =>
  spawnSync(process.execPath, [SCRIPT, ...args], { encoding: "utf8" });

it.each([
  [["--ops", "x"], /^random-golden: --ops x: wanted a whole number, 0 or more\n/],
  [["--opps", "3"], /^random-golden: Unknown option '--opps'\n/],
  [["--models", "0"], /^random-golden: --adapters wants models/],
  [["--devices", "cuda"], /^random-golden: --devices cuda: there are cpu, webgpu, wasm\n/],
] as const)("random-golden.mjs %j is a mistake of usage, and no trace", (args, message) => {
  const { status, stderr } = refused(args);
  expect(status).toBe(2);
  expect(stderr).toMatch(message);
  expect(stderr).toMatch(/\nusage: node .*random-golden.mjs \[--seed 1\] \[--ops 105\]/);
  expect(stderr).not.toMatch(/\n\s+at |Traceback/);
});

it("random-golden.mjs says what a Python lacks, and the line that installs it", () => {
  const { status, stderr } = refused(["--python", "/no/such/python"]);
  expect(status).toBe(1);
  expect(stderr).toMatch(
    /--python \/no\/such\/python cannot[\s\S]*-m pip install torch numpy.*leave --python out/,
  );
  expect(stderr).not.toMatch(/\n\s+at |Traceback|usage:/);
});
