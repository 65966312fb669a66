// Disks as they fail in earnest: a file system that is full, one that is read-only, a limit on the size of files. The other
// faults are played by train-faults.test.ts. What a system cannot do is skipped, and counted as skipped.
import { execFile, spawnSync } from "node:child_process";
import { chmod, mkdir, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type BundledCommand, bundleCommand } from "./bundled-command.ts";
import { FakeHub } from "./fake-hub.ts";
import { tinyArguments, traceOf, writeTinyFiles } from "./tiny-run.ts";

/** A file system of its own that is gone with the process: as root, and as everybody where user namespaces are allowed. */
const NAMESPACE = ["--mount", "--map-root-user", "sh", "-ec"];
const canMount =
  process.platform === "linux" &&
  spawnSync("unshare", [...NAMESPACE, "mount -t tmpfs -o size=64k tmpfs /mnt"], { stdio: "ignore" })
    .status === 0;
const isRoot = process.getuid?.() === 0;

let command: BundledCommand;
let whole = "";
let settings: string[] = [];
beforeAll(async () => {
  command = await bundleCommand("sidenet-disk");
  const files = await writeTinyFiles(command.folder);
  settings = tinyArguments(files);
  settings.push("--steps", "40", "--sample-tokens", "0", "--save-every", "2", "--keep", "1000");
  whole = join(command.folder, "whole");
  expect((await command.start(["train", ...settings, "--output", whole]).ended).code).toBe(0);
});
afterAll(() => command.remove());

/**
 * Runs a script for the shell in which `sidenet` is the command, within a namespace where it may mount if `mounts`. Its
 * parameters are "$1", "$2" and so on.
 */
function shell(script: string, parameters: readonly string[], mounts: boolean) {
  const text = `sidenet() { "${process.execPath}" "${command.main}" "$@"; }\n${script}`;
  const [program, before] = mounts ? ["unshare", NAMESPACE] : ["sh", ["-ec"]];
  const { status, stdout, stderr } = spawnSync(program, [...before, text, "sh", ...parameters], {
    encoding: "utf8",
    timeout: 60_000,
  });
  return { code: status, out: stdout, err: stderr };
}

const newFolder = async (name: string) => {
  const folder = join(command.folder, name);
  await mkdir(folder, { recursive: true });
  return folder;
};

describe.skipIf(!canMount)("a file system (skipped where none can be mounted)", () => {
  it("that is full ends a run with what to do; with more space it goes on to the same end", async () => {
    const kept = await newFolder("full-kept");
    const { code, out, err } = shell(
      `mount -t tmpfs -o size=160k tmpfs "$1"; kept=$2; disk=$1; shift 2
      sidenet train "$@" --output "$disk/run" && exit 9 || echo "first: $?"
      ls -A "$disk/run" "$disk/run/checkpoints"
      mount -o remount,size=8m "$disk"
      sidenet train --output "$disk/run" --resume --json
      cp -r "$disk/run" "$kept/run"`,
      [await newFolder("full"), kept, ...settings],
      true,
    );
    expect(code, err).toBe(0);
    expect(out).toContain("first: 1\n");
    expect(err).toMatch(/\[L-DISK-FULL\] .*the disk is full\. Free some space.*--resume/);
    expect(err).not.toContain("This is a bug");
    expect(out).not.toContain(".tmp"); // ls: nothing half-written is left
    const last = JSON.parse(out.trim().split("\n").at(-1)!);
    expect(last.resumed_from).toBeGreaterThan(0);
    expect(last.steps).toBe(40);
    expect(await traceOf(join(kept, "run"))).toEqual(await traceOf(whole));
    expect(await readdir(join(kept, "run"))).not.toContain("failure.json");
  });

  it("that is full leaves nothing of a model that does not fit", async () => {
    const { code, out, err } = shell(
      `mount -t tmpfs -o size=16k tmpfs "$1"
      sidenet convert --model "$2" --output "$1/out" --dtype f32 || echo "exit $?"
      ls -A "$1"`,
      [await newFolder("small"), join(command.folder, "model")],
      true,
    );
    expect({ code, out }, err).toEqual({ code: 0, out: "exit 1\n" });
    expect(err).toMatch(/\[L-DISK-FULL\] \S+\/small\/out\/model\.safetensors: /); // and not the temporary folder's name
  });

  it("that is nearly full ends a download with what to do, and a file that lacks its end never gets its name", async () => {
    const hub = await new FakeHub({
      "config.json": "{}",
      "model.safetensors": new Uint8Array(61_000),
    }).start();
    const script = `mount -t tmpfs -o size=56k tmpfs "$1"; export HF_HUB_CACHE="$1" HF_ENDPOINT="$2"
      sidenet generate --model org/tiny --prompt a --device cpu || echo "exit $?"
      ls "$1"/*/snapshots/*`;
    await newFolder("models"); // of the bundled models
    const disk = await newFolder("download");
    const text = `sidenet() { "${process.execPath}" "${command.main}" "$@"; }\n${script}`;
    const parameters = [...NAMESPACE, text, "sh", disk, hub.endpoint];
    // Not spawnSync: the hub answers from this process.
    const { stdout: out, stderr: err } = await promisify(execFile)("unshare", parameters);
    await hub.stop();
    expect(out, err).toBe("exit 1\nconfig.json\n");
    expect(err).toMatch(/\[L-DISK-FULL\] org\/tiny: .*the disk is full\. Free some space/);
  });

  it("that is read-only is told before the model is read, whatever would write to it", async () => {
    const { out, err } = shell(
      `mount -t tmpfs -o ro,size=1m tmpfs "$1"; disk=$1; shift
      sidenet train "$@" --output "$disk/run" || echo "exit $?"
      sidenet convert --model "$2" --output "$disk/deep/folder" || echo "exit $?"
      sidenet init "$disk/run.yaml" || echo "exit $?"`,
      [await newFolder("readonly"), ...settings],
      true,
    );
    expect(out).toBe("exit 1\n".repeat(3));
    const told = err.match(
      /^\[L-FILE\] .*the file system is read-only\. Choose a folder that can be written/gm,
    );
    expect(told, err).toHaveLength(3);
    expect(err).not.toContain("loss on held-out");
  });
});

describe.skipIf(process.platform === "win32")("a system", () => {
  it("that limits the size of files ends a run with what to do; without the limit it goes on to the same end", async () => {
    const output = join(await newFolder("limit"), "run");
    // metrics.jsonl is the first file to pass 4 KiB
    const { out, err } = shell(
      `ulimit -f 8; sidenet train "$@" || echo "exit $?"`,
      [...settings, "--output", output],
      false,
    );
    expect(out).toBe("exit 1\n");
    expect(err).toMatch(/\[L-DISK-FULL\] .*largest size allowed here/);
    const resumed = await command.start(["train", "--output", output, "--resume", "--json"]).ended;
    expect(resumed.code, resumed.err).toBe(0);
    expect(JSON.parse(resumed.out).steps).toBe(40);
    expect(await traceOf(output)).toEqual(await traceOf(whole));
  });

  it.skipIf(isRoot)(
    "that does not let a folder be written says so (skipped for root, who may write anywhere)",
    async () => {
      const folder = await newFolder("forbidden");
      await chmod(folder, 0o555);
      const ended = await command.start(["train", ...settings, "--output", join(folder, "run")]).ended;
      await chmod(folder, 0o755);
      await rm(folder, { recursive: true });
      expect(ended.code).toBe(1);
      expect(ended.err).toMatch(/\[L-FILE\] .*no permission/);
    },
  );
});
