// How many records are held out where nobody says it, and runs that hold out none.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { sidenet } from "./capture.ts";
import { writeTinyFiles } from "./tiny-run.ts";

const root = temporaryFolder();
let common: string[];
beforeAll(async () => {
  const { model } = await writeTinyFiles(root);
  common = ["--model", model, "--device", "cpu", "--batch-size", "1", "--steps", "2"];
});

async function dataOf(records: number): Promise<string> {
  const path = join(temporaryFolder(), "data.jsonl");
  await writeFile(path, '{"text": "abc def"}\n'.repeat(records));
  return path;
}

const train = (output: string, ...flags: string[]) =>
  sidenet("train", ...common, "--output", output, "--json", ...flags);

describe("held-out records", () => {
  it.each([
    [2, 1],
    [10, 2],
    [79, 15],
    [500, 16],
  ])("of %i are %i, unless a number is given", async (records, heldOut) => {
    const run = await train(temporaryFolder(), "--data", await dataOf(records));
    expect(run.err).toContain(`data: ${records - heldOut} training records, ${heldOut} held out`);
  });

  it("may be the only ones of a file, beside others", async () => {
    const files = await Promise.all([1, 1, 1, 1, 1].map(dataOf));
    const run = await train(temporaryFolder(), "--data", ...files);
    expect(run.err).toContain("data: 4 training records, 1 held out");
    expect(run.exitCode).toBe(0);
    const all = await train(temporaryFolder(), "--data", ...files, "--held-out", "5");
    expect(all.err).toMatch(/L-DATA\].*--held-out keeps/);
  });

  it("cannot be the only ones, and the error says how to go without", async () => {
    const run = await train(temporaryFolder(), "--data", await dataOf(1));
    expect(run).toMatchObject({
      exitCode: 1,
      err: expect.stringMatching(/L-DATA\].*keeps 1 of 1 records.*--held-out 0/),
    });
  });
});

describe("a run that holds out none", () => {
  it("trains on all records without evaluations, and can be resumed", async () => {
    const output = temporaryFolder();
    const run = await train(output, "--data", await dataOf(1), "--held-out", "0");
    const again = await sidenet("train", "--output", output, "--resume", "--steps", "3", "--json");
    for (const { exitCode, err, out, json } of [run, again]) {
      expect(exitCode).toBe(0);
      expect(err + out).not.toMatch(/held-out loss|before training|NaN/);
      expect(err).not.toContain("\n\n");
      const none = { frozen_eval_loss: null, initial_eval_loss: null, eval_loss: null, samples: null };
      expect(json()).toMatchObject(none);
    }
    expect(again.json()).toMatchObject({ resumed_from: 2, steps: 3 });
    expect(run.err).toContain("1 training records, none held out");
    expect(await readFile(join(output, "report.html"), "utf8")).toContain('"eval_loss":null');
  });

  it("has no loss in the table of compare", async () => {
    const flags = ["--methods", "ladder", "--data", await dataOf(3), "--held-out", "0"];
    const run = await sidenet("compare", ...common, ...flags, "--output", join(temporaryFolder(), "out"));
    expect(run.out).toMatch(/^ladder +\d+\.\d{4} +- /m);
  });

  it("cannot evaluate", async () => {
    const run = await train(
      temporaryFolder(),
      "--data",
      await dataOf(3),
      "--held-out",
      "0",
      "--eval-every",
      "1",
    );
    expect(run).toMatchObject({ exitCode: 2, err: expect.stringContaining("--held-out 0 keeps none") });
  });
});
