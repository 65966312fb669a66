// What a resumed run may change: its losses are compared with those of the same records and weights only.
import { cp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { readMetrics } from "../src/node/run/metrics-log.ts";
import { type TrainRunOptions, trainRun } from "../src/node/train-run.ts";
import { cpu, tinyOptions, writeTinyFiles } from "./tiny-run.ts";

let files: Awaited<ReturnType<typeof writeTinyFiles>>;
beforeAll(async () => {
  files = await writeTinyFiles(temporaryFolder());
});

const settingsOf = async (folder: string) =>
  JSON.parse(await readFile(join(folder, "run.json"), "utf8")).settings;

/** A run of 4 steps that evaluates every second, whose evaluations at a rate of 0 are all alike. */
async function earlierRun(change: Partial<TrainRunOptions> = {}) {
  const options = tinyOptions(files, temporaryFolder(), "ladder", {
    ...{ steps: 4, evalEvery: 2, maxLength: 12, learningRate: 0, settings: { is: "first" } },
    ...change,
  });
  await trainRun(cpu(), options);
  return options;
}

async function resume(options: TrainRunOptions, change: Partial<TrainRunOptions>) {
  const notes: string[] = [];
  const onNote = (text: string) => notes.push(text);
  const again = { ...options, existing: "resume", settings: { is: "second" }, ...change } as const;
  return { summary: await trainRun(cpu(), again, { onNote }), notes: notes.join("\n") };
}

const evaluationsIn = async (folder: string) =>
  (await readMetrics(join(folder, "metrics.jsonl"))).flatMap((line) =>
    "eval_loss" in line ? [line.step] : [],
  );

describe("a resumed run", () => {
  it.each([
    ["records of another length", { maxLength: 5 }],
    [
      "weights in another format",
      { storage: { dtype: "f32", quantizeBlocks: false, quantizeEmbeddings: true } },
    ],
    ["other held-out records", { data: [] }],
  ] as const)(
    "with %s measures the frozen model anew, and forgets evaluations of before",
    async (_, change) => {
      const options = await earlierRun({
        storage: { dtype: "f32", quantizeBlocks: false, quantizeEmbeddings: false },
        sampleTokens: 2,
      });
      const { data } = await writeTinyFiles(temporaryFolder(), 25);
      const other: Partial<TrainRunOptions> = "data" in change ? { data: [data], heldOut: 5 } : change;
      const fresh = await trainRun(cpu(), { ...options, ...other, outputDir: temporaryFolder() });
      const { summary, notes } = await resume(options, { ...other, steps: 6 });
      expect(summary.frozen_eval_loss).toBe(fresh.frozen_eval_loss);
      expect(summary.initial_eval_loss).toBe(fresh.frozen_eval_loss);
      expect(summary.eval_loss).toBe(fresh.eval_loss);
      expect(summary.samples?.before).toEqual(fresh.samples?.before);
      expect(summary.adapter_step).toBe(4);
      expect(await evaluationsIn(options.outputDir)).toEqual([4, 6]);
      expect(notes).toMatch(/held-out loss was \d\.\d{4} and is \d\.\d{4} .*do not count any more/);
    },
  );

  it.each([
    ["weights", (folder: string) => writeTinyFiles(folder, 24, 8)],
    ["a config", (folder: string) => changeConfig(join(folder, "model", "config.json"))],
  ])("with %s replaced in the model's folder measures the frozen model anew", async (_, replace) => {
    const folder = temporaryFolder();
    const { model } = await writeTinyFiles(folder);
    const options = await earlierRun({ model });
    await replace(folder);
    const fresh = await trainRun(cpu(), { ...options, outputDir: temporaryFolder() });
    const { summary, notes } = await resume(options, { steps: 6 });
    expect(summary.frozen_eval_loss).toBe(fresh.frozen_eval_loss);
    expect(notes).toContain("do not count any more");
  });

  it("that scores other tokens of the same records measures the frozen model anew", async () => {
    const data = join(temporaryFolder(), "data.jsonl");
    const writeAll = (record: object) => writeFile(data, `${JSON.stringify(record)}\n`.repeat(8));
    await writeAll({ prompt: "abc", completion: "defghi" });
    const options = await earlierRun({ data: [data] });
    await writeAll({ text: "abcdefghi" });
    const fresh = await trainRun(cpu(), { ...options, outputDir: temporaryFolder() });
    const { summary } = await resume(options, { steps: 6 });
    expect(summary.frozen_eval_loss).toBe(fresh.frozen_eval_loss);
  });

  it("whose evaluations of before do not count has its whole patience again", async () => {
    const options = await earlierRun();
    const change = { maxLength: 5, evalEvery: 3, patience: 1, steps: 6 };
    expect((await resume(options, change)).summary).toMatchObject({ steps: 6, stop_reason: "done" });
    const again = await earlierRun();
    const same = await resume(again, { ...change, maxLength: 12 });
    expect(same.summary).toMatchObject({ steps: 4, stop_reason: "patience" });
  });

  it("goes on comparing where the same records go through the same weights", async () => {
    const options = await earlierRun();
    const model = join(temporaryFolder(), "moved");
    await cp(options.model, model, { recursive: true });
    for (const [i, change] of [{ maxLength: 60 }, { model }].entries()) {
      const { summary, notes } = await resume(options, { ...change, steps: 6 + 2 * i });
      expect(summary).toMatchObject({ adapter_step: 2, eval_loss: summary.frozen_eval_loss });
      expect(notes).not.toContain("count");
    }
    expect(await evaluationsIn(options.outputDir)).toEqual([2, 4, 6, 8]);
    expect(await settingsOf(options.outputDir)).toEqual({ is: "second" });
  });

  it.each([
    [
      "weights of the files",
      {},
      (): Partial<TrainRunOptions> => ({ data: weighted(3) }),
      /21 x 1 \+ 5 x 1 .*21 x 1 \+ 5 x 3.*--data/,
    ],
    ["packed lengths", { packLength: 40, batchSize: 1 }, () => ({ maxLength: 5 }), /L-RESUME.*--max-length/],
    ["lengths in buckets", { bucketByLength: true }, () => ({ maxLength: 5 }), /L-RESUME.*--max-length/],
  ] as const)("refuses other %s, and can still go on as it was", async (_, sizes, change, message) => {
    const options = await earlierRun({ ...sizes, data: weighted(1) });
    const checkpoints = await readdir(join(options.outputDir, "checkpoints"));
    await expect(resume(options, { ...change(), steps: 6 })).rejects.toThrow(message);
    expect(await readdir(join(options.outputDir, "checkpoints"))).toEqual(checkpoints);
    expect(await settingsOf(options.outputDir)).toEqual({ is: "first" });
    expect((await resume(options, { steps: 6 })).summary.steps).toBe(6);
  });
});

async function changeConfig(path: string) {
  const config = JSON.parse(await readFile(path, "utf8"));
  await writeFile(path, JSON.stringify({ ...config, rope_theta: 10 }));
}

const weighted = (weight: number) => [
  { path: files.data, weight: 1 },
  { path: files.more, weight },
];
