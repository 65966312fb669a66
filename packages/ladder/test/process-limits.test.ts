// Limits that a system sets to a process: on its addresses and its threads.
import { spawnSync } from "node:child_process";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BundledCommand, bundleCommand } from "./bundled-command.ts";
import { tinyArguments, writeTinyFiles } from "./tiny-run.ts";

let command: BundledCommand;
let settings: string[] = [];
beforeAll(async () => {
  command = await bundleCommand("sidenet-limits");
  settings = [...tinyArguments(await writeTinyFiles(command.folder)), "--steps", "2", "--sample-tokens", "0"];
});
afterAll(() => command.remove());

/** Runs the command on a device after `before`, a line for the shell. */
function train(before: string, device: string, env: NodeJS.ProcessEnv = {}) {
  const output = join(command.folder, device);
  const args = [command.main, "train", ...settings, "--device", device, "--output", output, "--overwrite"];
  const { status, stderr } = spawnSync("sh", ["-c", `${before}; exec "$0" "$@"`, process.execPath, ...args], {
    encoding: "utf8",
    timeout: 60_000,
    env: { ...process.env, ...env },
  });
  return { code: status, err: stderr };
}

describe.runIf(process.platform === "linux")("a process", () => {
  const FEW_ADDRESSES = "ulimit -v 6000000"; // KiB; one WebAssembly memory reserves more

  it("with few addresses trains where no WebAssembly is needed", () => {
    const { code, err } = train(FEW_ADDRESSES, "cpu");
    expect(code, err).toBe(0);
  });

  it("with few addresses is told why WebAssembly does not run", () => {
    const { code, err } = train(FEW_ADDRESSES, "wasm");
    expect(code, err).toBe(1);
    expect(err).toMatch(/\[T-WASM\] WebAssembly needs some 10 GiB of addresses.*ulimit -v/);
    expect(err).not.toContain("    at ");
  });

  it("whose threads end before they are ready is told so", async () => {
    const hook = join(command.folder, "no-threads.cjs");
    await writeFile(hook, 'if (!require("node:worker_threads").isMainThread) process.exit(3);');
    const env = { NODE_OPTIONS: `--require ${hook}`, SIDENET_THREADS: "3" };
    const { code, err } = train("true", "wasm", env);
    expect(code, err).toBe(1);
    expect(err).toMatch(/\[T-THREADS\] 0 of 2 further threads started: a thread ended with code 3/);
  });
});
