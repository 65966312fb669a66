// Several processes that start to train into one folder at the same moment: one does, the others are told.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { beforeEach, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { lockRunFolder } from "../src/node/run/run-lock.ts";

const DEAD = 999_999_999;
// All callers are in this process here, and have to take each other for other ones.
vi.mock("../src/node/other-process.ts", () => ({ isOtherProcess: (pid: number) => pid !== DEAD }));

let folder = "";
beforeEach(() => {
  folder = temporaryFolder();
});

it.each([
  ["no lock", null],
  ["the lock of a killed process", `${DEAD} ${hostname()}`],
  ["the lock of another machine", `${process.pid} elsewhere`],
])("one of many gets the folder where there is %s", async (_, lock) => {
  for (let round = 0; round < 20; round++) {
    if (lock !== null) await writeFile(join(folder, ".lock"), lock);
    const tries = await Promise.allSettled(Array.from({ length: 6 }, () => lockRunFolder(folder)));
    const failures = tries.flatMap((one) => (one.status === "rejected" ? [one.reason.code] : []));
    expect(failures).toEqual(Array.from({ length: 5 }, () => "L-RUN-BUSY"));
    expect(await readdir(folder)).toEqual([".lock"]);
    expect(await readFile(join(folder, ".lock"), "utf8")).toBe(`${process.pid} ${hostname()}`);
    for (const one of tries) if (one.status === "fulfilled") await one.value();
    expect(await readdir(folder)).toEqual([]);
  }
});
