// Data that are read only from the start on: compressed files and pipes.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { recordParser } from "../src/data/record-list.ts";
import { parseRecord } from "../src/data/records.ts";
import { openRecords, readRecords } from "../src/node/data/record-store.ts";
import { sidenet } from "./capture.ts";

const folder = temporaryFolder();

async function file(name: string, content: string | Uint8Array): Promise<string> {
  const path = join(folder, name);
  await writeFile(path, content);
  return path;
}

async function all(path: string): Promise<object[]> {
  const records: object[] = [];
  for await (const { record } of readRecords(path)) records.push(record);
  return records;
}

describe("a compressed data file", () => {
  it.each([
    ["x.jsonl", '{"text":"a"}\n{"text":"\u00e9"}\n'],
    ["x.JSON", '[{"text":"a"},{"text":"\u00e9"}]'],
    ["x.csv", "text\na\n\u00e9\n"],
    ["x.txt", "a\n\n\u00e9\n"],
  ])("is read as %s is", async (name, content) => {
    const plain = await all(await file(name, content));
    const half = Math.floor(content.length / 2);
    const members = [content.slice(0, half), content.slice(half)].map((part) => gzipSync(part));
    const packed = await file(`${name}.gz`, Buffer.concat(members));
    expect(await all(packed)).toEqual(plain);
    const store = await openRecords([packed], parseRecord);
    expect(store.length).toBe(plain.length);
    const last = plain.length - 1;
    expect((await store.get(last)).record).toEqual(plain[last]);
    await store.close();
  });

  it("is refused when it is cut off, or is not what its name says", async () => {
    const whole = gzipSync('{"text":"a"}\n'.repeat(9));
    await expect(all(await file("x.jsonl.gz", whole.subarray(0, -9)))).rejects.toThrow(
      /L-DATA.*ends too early/,
    );
    await expect(all(await file("x.jsonl.gz", '{"text":"a"}'))).rejects.toThrow(
      /L-DATA.*not what gzip writes/,
    );
    await expect(all(await file("x.parquet.gz", whole))).rejects.toThrow(/L-DATA.*Decompress the file/);
    await expect(all(join(folder, "none.jsonl.gz"))).rejects.toThrow(/L-DATA.*no such file/);
  });
});

describe.skipIf(process.platform === "win32")("a pipe", () => {
  it("is read once, and its records then in any order", async () => {
    const path = join(folder, "pipe");
    execFileSync("mkfifo", [path]);
    const [store] = await Promise.all([
      openRecords([path], recordParser({ text: "body" })),
      writeFile(path, '{"body":"a"}\n\n{"body":"b"}\n'),
    ]);
    expect([store.length, await store.get(1), await store.get(0)]).toEqual([
      2,
      { record: { text: "b" }, source: "pipe, line 3" },
      { record: { text: "a" }, source: "pipe, line 1" },
    ]);
    await store.close();
    await expect(openRecords(["/dev/null"], parseRecord)).rejects.toThrow(
      /L-DATA.*pipe it in again .* --data/,
    );
    await expect(openRecords(["/dev/fd/999"], parseRecord)).rejects.toThrow(
      /L-DATA.*pipe it in again .* --data/,
    );
    const output = join(folder, "out");
    const file = join(folder, "texts.jsonl");
    await writeFile(file, '{"text":"a"}\n{"text":"b"}\n');
    for (const args of [
      ["--data", path],
      ["--data", file, "--eval-data", path],
      ["--data", file, "--prefix", path],
      ["--data", file, "--chat-template", path],
    ]) {
      const names = ["--model", "tiny-books", "--methods", "ladder", "head"];
      const compared = await sidenet("compare", ...names, ...args, "--output", output);
      expect([args, compared.exitCode]).toEqual([args, 2]);
      expect(compared.err).toMatch(/C-USAGE\] \S*pipe is a pipe, and each method reads it/);
    }
  });

  it.skipIf(!existsSync("/dev/ptmx"))("is no terminal, from which a run would wait for data", async () => {
    await expect(openRecords(["/dev/ptmx"], parseRecord)).rejects.toThrow(
      /L-DATA.* is a terminal here\. Pipe/,
    );
  });
});
