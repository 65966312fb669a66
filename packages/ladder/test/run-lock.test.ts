// Several processes that start to train into one folder at the same moment: one does, the others are told.
import { readdir, readFile, symlink, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, join } from "node:path";
import { beforeEach, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";

const DEAD = 999_999_999;
// All callers are in this process here, and have to take each other for other ones: each has a module of its own.
async function caller() {
  vi.resetModules();
  return (await import("../src/node/run/run-lock.ts")).lockRunFolder;
}
const isOther = vi.hoisted(() => vi.fn((pid: number) => pid !== 999_999_999));
vi.mock("../src/node/other-process.ts", () => ({ isOtherProcess: isOther }));

let folder = "";
beforeEach(() => {
  folder = temporaryFolder();
});

it.each([
  ["no lock", null],
  ["the lock of a killed process", `${DEAD} ${hostname()}`],
  ["the lock of another machine", `${process.pid} elsewhere`],
])("one of many gets the folder where there is %s", async (_, lock) => {
  const callers: Awaited<ReturnType<typeof caller>>[] = [];
  while (callers.length < 6) callers.push(await caller());
  for (let round = 0; round < 20; round++) {
    if (lock !== null) await writeFile(join(folder, ".lock"), lock);
    const tries = await Promise.allSettled(callers.map((lock) => lock(folder)));
    const failures = tries.flatMap((one) => (one.status === "rejected" ? [one.reason.code] : []));
    expect(failures).toEqual(Array.from({ length: 5 }, () => "L-RUN-BUSY"));
    expect(await readdir(folder)).toEqual([".lock"]);
    expect(await readFile(join(folder, ".lock"), "utf8")).toBe(`${process.pid} ${hostname()}`);
    for (const one of tries) if (one.status === "fulfilled") await one.value();
    expect(await readdir(folder)).toEqual([]);
  }
});

it("one of many gets the folder within a process too, by whatever path", async () => {
  const lock = await caller();
  await writeFile(join(folder, ".lock"), `${process.pid} elsewhere`);
  await symlink(folder, `${folder}-link`);
  const unlock = await lock(folder);
  isOther.mockReturnValue(false); // as the process itself sees it
  for (const path of [folder, join(folder, "..", basename(folder)), `${folder}-link`])
    await expect(lock(path)).rejects.toMatchObject({ code: "L-RUN-BUSY" });
  await unlock();
  await (await lock(folder))();
});
