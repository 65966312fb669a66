// What stands beside a file or folder while it is written, and what becomes of it when the process ends by force.
import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { lstat, mkdir, readdir, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { afterAll, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { writeFileAtomic } from "../src/node/atomic-write.ts";
import { makeFolder } from "../src/node/make-folder.ts";
import { checkOutputFile, writeFolderAtomic } from "../src/node/output-folder.ts";
import { type BundledCommand, bundleCommand } from "./bundled-command.ts";
import { errorOf } from "./code-of.ts";

let folder: string;
beforeEach(() => {
  folder = temporaryFolder();
});

/** A number that no process has: larger than Linux gives. */
const DEAD = 2 ** 30;

describe("a file or folder that is written", () => {
  it("replaces what a killed process has left of it, and nothing else", async () => {
    await mkdir(join(folder, `.out.${DEAD}-01234567.tmp`));
    await writeFile(join(folder, `.file.${DEAD}-01234567.tmp`), "half");
    await writeFile(join(folder, `.file.${process.ppid}-01234567.tmp`), "of a process that lives");
    await writeFile(join(folder, ".file.notes.tmp"), "the user's");
    await writeFileAtomic(join(folder, "file"), "whole");
    await writeFolderAtomic(join(folder, "out"), (temporary) => writeFile(join(temporary, "a"), "1"));
    const expected = [`.file.${process.ppid}-01234567.tmp`, ".file.notes.tmp", "file", "out"];
    expect((await readdir(folder)).sort()).toEqual(expected.sort());
  });

  it("gives a folder back that was moved away by a process that was killed then, if the new one fails", async () => {
    const old = join(folder, `.out.${DEAD}-01234567.old`);
    await mkdir(old);
    await writeFile(join(old, "config.json"), "old");
    const failing = writeFolderAtomic(join(folder, "out"), () => Promise.reject(new Error("no")));
    await errorOf(failing);
    expect(await readdir(folder)).toEqual(["out"]);
    expect(await readFile(join(folder, "out", "config.json"), "utf8")).toBe("old");
  });

  it("keeps the folder that it would have replaced if its own name cannot be given", async () => {
    await mkdir(join(folder, "out"));
    await writeFile(join(folder, "out", "config.json"), "old");
    await errorOf(writeFolderAtomic(join(folder, "out"), (temporary) => rm(temporary, { recursive: true })));
    expect(await readFile(join(folder, "out", "config.json"), "utf8")).toBe("old");
  });

  it("may have as long a name as the system allows", async () => {
    const name = "n".repeat(255);
    await writeFileAtomic(join(folder, name), "1");
    expect(await readdir(folder)).toEqual([name]);
    const { code, message } = await errorOf(writeFileAtomic(join(folder, `${name}n`), "1"));
    expect({ code, message }).toEqual({ code: "L-FILE", message: expect.stringContaining("too long") });
  });

  it.skipIf(process.platform === "win32")(
    "stands where a link to nothing leads to, if that can be",
    async () => {
      await symlink("there", join(folder, "out"));
      await writeFolderAtomic(join(folder, "out"), (temporary) => writeFile(join(temporary, "a"), "1"));
      await symlink("file there", join(folder, "file"));
      await writeFileAtomic(join(folder, "file"), "1");
      await symlink("run there", join(folder, "run"));
      await makeFolder(join(folder, "run", "ladder"));
      expect((await readdir(folder)).sort()).toEqual(
        ["file", "file there", "out", "run", "run there", "there"].sort(),
      );
      for (const link of ["out", "file", "run"])
        expect((await lstat(join(folder, link))).isSymbolicLink()).toBe(true);
      const away = join(folder, "away");
      await symlink(join(folder, "unmounted", "place"), away);
      const writing = [
        () => writeFileAtomic(away, "1"),
        () => writeFolderAtomic(away, async () => {}),
        () => makeFolder(join(away, "ladder")),
      ];
      for (const write of writing) {
        const { code, message } = await errorOf(write());
        expect(code).toBe("L-FILE");
        expect(message).toMatch(
          /away: it is a link to \S+place, and there is no folder \S+unmounted\. .*mounted/,
        );
      }
      expect((await lstat(away)).isSymbolicLink()).toBe(true);
    },
  );

  it.skipIf(process.platform === "win32")("leaves a link as it is and writes what it leads to", async () => {
    await writeFile(join(folder, "real"), "old");
    await symlink("real", join(folder, "link"));
    await writeFileAtomic(join(folder, "link"), "new");
    expect((await lstat(join(folder, "link"))).isSymbolicLink()).toBe(true);
    expect(await readFile(join(folder, "real"), "utf8")).toBe("new");
  });

  it.skipIf(process.platform === "win32")("never replaces a device", async () => {
    await checkOutputFile("/dev/null", []);
    await writeFileAtomic("/dev/null", "text");
    await expect(checkOutputFile(join(folder, "none", "file"), [])).rejects.toThrow("L-FILE-MISSING");
    await expect(checkOutputFile(join(folder, "file.gz"), [])).rejects.toThrow(/L-OUTPUT.*not compressed/);
    expect((await lstat("/dev/null")).isCharacterDevice()).toBe(true);
  });
});

describe.skipIf(process.platform === "win32")("a command", () => {
  const model = fileURLToPath(new URL("../models/tiny-books", import.meta.url));
  let command: BundledCommand;
  beforeAll(async () => {
    command = await bundleCommand("sidenet-signal");
  });
  afterAll(() => command.remove());

  it.each(["SIGINT", "SIGTERM", "SIGHUP"] as const)(
    "that %s ends leaves nothing of what it was writing",
    async (signal) => {
      const args = ["--model", model, "--output", join(folder, "out"), "--dtype", "nf4"];
      const { child, ended } = command.start(["convert", ...args, "--device", "cpu"]);
      while (child.exitCode === null && (await readdir(folder)).length === 0) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      expect(existsSync(join(folder, "out"))).toBe(false);
      child.kill(signal);
      expect((await ended).signal).toBe(signal);
      expect(await readdir(folder)).toEqual([]);
    },
  );

  it("writes its file to a pipe, and takes a reader that has enough for the end", async () => {
    const script = 'lines=$1; shift; { "$@" 3>&1 >/dev/null; echo $? >&2; } | head -n $lines';
    const piped = (lines: string, ...args: string[]) => {
      const given = ["-c", script, "sh", lines, process.execPath, command.main, ...args, "--model", model];
      const { stdout, stderr } = spawnSync("sh", given, { encoding: "utf8" });
      return { lines: stdout.split("\n").length - 1, code: stderr.trim().split("\n").at(-1) };
    };
    const data = join(folder, "rows.jsonl");
    await writeFile(data, '{"text":"Once upon a time"}\n{"text":"there was a king"}\n');
    const args = ["--task", "loss", "--data", data, "--predictions", "/dev/fd/3", "--device", "cpu"];
    expect(piped("9", "eval", ...args)).toEqual({ lines: 2, code: "0" });
    const plan = ["plan", "--method", "full", "--memory-timeline", "/dev/fd/3"]; // more than a pipe holds
    expect(piped("1", ...plan)).toEqual({ lines: 1, code: "0" });
  });

  it.skipIf(!existsSync("/dev/full"))("whose output goes to a full disk says so", () => {
    const script = '"$1" "$2" plan --model "$3" --method ladder > /dev/full';
    const { status, stderr } = spawnSync("sh", ["-c", script, "sh", process.execPath, command.main, model], {
      encoding: "utf8",
    });
    expect({ status, stderr }).toEqual({
      status: 1,
      stderr:
        "[L-DISK-FULL] standard output: the disk is full. Free some space; existing files are intact.\n",
    });
  });
});
