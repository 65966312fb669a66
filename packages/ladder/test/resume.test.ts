// A run that is stopped and resumed is the run that was never stopped: the same losses and the same adapter, to the bit.
import { copyFileSync } from "node:fs";
import { mkdir, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { dirname, join } from "node:path";
import { CpuDevice, type Device, SidenetError } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { METHODS, type Method } from "../src/methods/adapter.ts";
import { readMetrics } from "../src/node/run/metrics-log.ts";
import { openSafetensorsFile } from "../src/node/safetensors-file.ts";
import { type TrainRunEvents, type TrainRunOptions, trainRun } from "../src/node/train-run.ts";
import { cpu, tinyOptions, traceOf, writeTinyFiles } from "./tiny-run.ts";

const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
beforeAll(async () => {
  files = await writeTinyFiles(root);
});

const open: Device[] = [];
afterEach(() => {
  for (const device of open.splice(0)) device.dispose();
});

const checkpointsIn = async (folder: string) => (await readdir(join(folder, "checkpoints"))).sort();

/** Runs until `stopAfter` steps are done, as after Ctrl-C; a number past the end lets it run through. */
async function runUntil(
  device: Device,
  options: TrainRunOptions,
  stopAfter: number,
  events: TrainRunEvents = {},
) {
  const stop = new AbortController();
  return trainRun(
    device,
    options,
    {
      ...events,
      onStep: (line) => {
        if (line.step + 1 >= stopAfter) stop.abort();
      },
    },
    stop.signal,
  );
}

/** Never stopped, and stopped twice: after 2 steps, and 5. */
async function compare(device: Device, method: Method, change: Partial<TrainRunOptions> = {}) {
  const whole = tinyOptions(files, temporaryFolder(), method, change);
  const summary = await trainRun(device, whole);
  const parts = tinyOptions(files, temporaryFolder(), method, change);
  expect(await runUntil(device, parts, 2)).toMatchObject({
    steps: 2,
    stop_reason: "signal",
    eval_loss: null,
  });
  await runUntil(device, { ...parts, existing: "resume" }, 5);
  const resumed = await trainRun(device, { ...parts, existing: "resume" });
  expect(resumed).toMatchObject({ resumed_from: 5, steps: 8, stop_reason: "done" });
  expect(resumed.loss).toEqual(summary.loss);
  expect(resumed.eval_loss).toBe(summary.eval_loss);
  expect(resumed.tokens).toBe(summary.tokens);
  expect(resumed.flops).toBe(summary.flops);
  expect(await traceOf(parts.outputDir)).toEqual(await traceOf(whole.outputDir));
  expect(new Set(summary.loss).size).toBeGreaterThan(4); // it learns from other records each step
}

const devices =
  process.env.SIDENET_DEVICE === "cpu" ? (["cpu", "wasm"] as const) : (["cpu", "wasm", "webgpu"] as const);

describe("a resumed run equals one that was never stopped, to the bit", () => {
  describe.each(devices)("on %s", (name) => {
    it.each(METHODS)("with %s", async (method) => {
      const { device } = await openDevice(name);
      open.push(device);
      await compare(device, method);
    });

    it("with 8-bit moments, micro-batches, accumulated gradients, dropout and evaluations", async () => {
      const { device } = await openDevice(name);
      open.push(device);
      await compare(device, "lora", {
        memory: { optimizerState: "8bit", microBatchSize: 1, gradientCheckpointing: true },
        gradientAccumulation: 2,
        evalEvery: 2,
        sampleTokens: 3,
      });
    });
  });

  it("with packed rows, and with buckets of like lengths", async () => {
    await compare(cpu(), "ladder", { packLength: 40, batchSize: 1 });
    await compare(cpu(), "ladder", { bucketByLength: true, heldOut: 0.2 });
  });

  it("with several files of different weights", async () => {
    await compare(cpu(), "ladder", {
      data: [
        { path: files.data, weight: 1 },
        { path: files.more, weight: 2.5 },
      ],
    });
  });
});

describe("checkpoints", () => {
  it("are kept as many as asked for, the latest ones", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { saveEvery: 1, keep: 3 });
    await trainRun(cpu(), options);
    expect(await checkpointsIn(options.outputDir)).toEqual([
      "step-000006.safetensors",
      "step-000007.safetensors",
      "step-000008.safetensors",
    ]);
    expect((await readdir(options.outputDir)).filter((name) => name.startsWith("."))).toEqual([]);
  });

  it("are written every so many steps and at the end, each once, also where a run goes on from one", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { saveEvery: 3 });
    const written: number[] = [];
    const events = { onCheckpoint: (step: number) => written.push(step) };
    await runUntil(cpu(), options, 3, events);
    await trainRun(cpu(), { ...options, existing: "resume" }, events);
    expect(written).toEqual([3, 6, 8]);
  });

  it("come with the adapter of their step, for a run that is killed after them", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { saveEvery: 2, keep: 9, evalEvery: 2 });
    const { outputDir } = options;
    const copies: { step: number; copy: string }[] = [];
    const onCheckpoint = (step: number) => {
      const copy = join(outputDir, `copy-${step}.safetensors`);
      copyFileSync(join(outputDir, "adapter_model.safetensors"), copy);
      copies.push({ step, copy });
    };
    await trainRun(cpu(), options, { onCheckpoint });
    expect(copies.map(({ step }) => step)).toEqual([2, 4, 6, 8]);
    for (const { step, copy } of copies) {
      const path = join(outputDir, "checkpoints", `step-${String(step).padStart(6, "0")}.safetensors`);
      const [adapter, checkpoint] = await Promise.all([copy, path].map(openSafetensorsFile));
      for (const [name, tensor] of adapter.tensors) {
        expect(await tensor.read()).toEqual(await checkpoint.tensors.get(`adapter.${name}`)?.read());
      }
      await adapter.close();
      await checkpoint.close();
    }
  });

  it.each([
    ["a flipped bit in its data", (bytes: Buffer) => (bytes[bytes.length - 9] ^= 1)],
    ["a flipped bit in its state", (bytes: Buffer) => (bytes[bytes.indexOf('\\"tokens\\":') + 12] ^= 1)],
    ["another name in its header", (bytes: Buffer) => (bytes[bytes.indexOf(".weight") + 1] ^= 1)],
    ["zeros for a page", (bytes: Buffer) => bytes.fill(0, 0, 512)],
    ["half of it", null],
  ] as const)(
    "that are damaged, here by %s, are left out for the one before, and the run says so",
    async (_, spoil) => {
      const whole = tinyOptions(files, temporaryFolder());
      await trainRun(cpu(), whole);
      const options = tinyOptions(files, temporaryFolder());
      await runUntil(cpu(), options, 7);
      const last = join(options.outputDir, "checkpoints", "step-000007.safetensors");
      const bytes = await readFile(last);
      if (spoil) spoil(bytes);
      await (spoil ? writeFile(last, bytes) : truncate(last, bytes.length / 2));
      const notes: string[] = [];
      const summary = await trainRun(
        cpu(),
        { ...options, existing: "resume" },
        { onNote: (text) => notes.push(text) },
      );
      expect(summary.resumed_from).toBe(6);
      expect(notes.join("\n")).toMatch(/step-000007\.safetensors.*is damaged: .*It is skipped\./);
      expect(await traceOf(options.outputDir)).toEqual(await traceOf(whole.outputDir));
      expect(await checkpointsIn(options.outputDir)).toContain("step-000007.safetensors.damaged");
    },
  );

  it("are refused when all are damaged, when the data changed, or when they are of other sizes", async () => {
    const options = tinyOptions(files, temporaryFolder());
    await runUntil(cpu(), options, 4);
    const again = { ...options, existing: "resume" as const };
    const two = [files.data, files.more];
    await expect(trainRun(cpu(), { ...again, data: two })).rejects.toMatchObject({ code: "L-RESUME" });
    const rank = { method: "ladder", ladder: { reduction: 4 } } as const;
    await expect(trainRun(cpu(), { ...again, method: rank })).rejects.toMatchObject({ code: "L-CHECKPOINT" });
    for (const name of await checkpointsIn(options.outputDir))
      await writeFile(join(options.outputDir, "checkpoints", name), "nothing");
    await expect(trainRun(cpu(), again)).rejects.toMatchObject({
      code: "L-CHECKPOINT",
      message: expect.stringMatching(/no checkpoint in .* is whole.*--overwrite/),
    });
  });

  it("are refused by a smaller network, which would leave a part of theirs out", async () => {
    const of = (layers: number) =>
      ({ method: { method: "ladder", ladder: { reduction: 2, layers } } }) as const;
    const options = tinyOptions(files, temporaryFolder(), "ladder", of(2));
    await runUntil(cpu(), options, 2);
    const again = trainRun(cpu(), { ...options, ...of(1), existing: "resume" });
    await expect(again).rejects.toThrow(/L-CHECKPOINT.*holds adapter.*does not train/);
  });

  it("are not taken for damaged where the device is what fails", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 1 });
    await trainRun(cpu(), options);
    class Lost extends CpuDevice {
      override assign(): void {
        throw new SidenetError("T-DEVICE-LOST", "the device is lost.");
      }
    }
    const again = trainRun(new Lost(), { ...options, existing: "resume" });
    await expect(again).rejects.toMatchObject({ code: "T-DEVICE-LOST" });
    expect(await checkpointsIn(options.outputDir)).toEqual(["step-000001.safetensors"]);
  });

  it("of a run that was killed before its first one mean a start from the beginning", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 2, existing: "resume" });
    const first = await trainRun(cpu(), options);
    await rm(join(options.outputDir, "checkpoints"), { recursive: true });
    const notes: string[] = [];
    const second = await trainRun(cpu(), options, { onNote: (text) => notes.push(text) });
    expect(second.loss).toEqual(first.loss);
    expect(notes.join()).toContain("no checkpoint yet");
  });
});

describe("the folder of a run", () => {
  it("is not taken from a run that is there, unless it is to be resumed or replaced", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 2 });
    await trainRun(cpu(), options);
    await expect(trainRun(cpu(), options)).rejects.toMatchObject({
      code: "L-RUN-EXISTS",
      message: expect.stringMatching(/--resume.*--overwrite.*--output/),
    });
    const replaced = await trainRun(cpu(), { ...options, steps: 1, existing: "overwrite" });
    expect(replaced.loss.length).toBe(1);
    expect(await checkpointsIn(options.outputDir)).toEqual(["step-000001.safetensors"]);
  });

  it("is not taken from another program, whose files a run would replace", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 1 });
    const theirs = join(options.outputDir, "checkpoints", "epoch-1", "model.pt");
    await mkdir(dirname(theirs), { recursive: true });
    await writeFile(theirs, "theirs");
    for (const existing of ["refuse", "resume"] as const) {
      await expect(trainRun(cpu(), { ...options, existing })).rejects.toMatchObject({
        code: "L-OUTPUT",
        message: expect.stringMatching(/holds checkpoints, but no run\.json.*--output.*--overwrite/),
      });
    }
    expect(await readFile(theirs, "utf8")).toBe("theirs");
    await trainRun(cpu(), { ...options, existing: "overwrite" });
  });

  it("is one process's at a time, and no more that of one that is gone", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 1 });
    const lock = join(options.outputDir, ".lock");
    await mkdir(options.outputDir, { recursive: true });
    await writeFile(lock, `${process.ppid} ${hostname()}`);
    await expect(trainRun(cpu(), options)).rejects.toMatchObject({
      code: "L-RUN-BUSY",
      message: expect.stringMatching(new RegExp(`process ${process.ppid} writes to .*another --output`)),
    });
    await writeFile(lock, `${2 ** 30} ${hostname()}`);
    await trainRun(cpu(), options);
    expect(await readdir(options.outputDir)).not.toContain(".lock");
  });

  it("keeps the old run when the new one cannot start", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 2 });
    await trainRun(cpu(), options);
    const before = await traceOf(options.outputDir);
    const bad = { ...options, existing: "overwrite" as const, data: [join(root, "none.jsonl")] };
    await expect(trainRun(cpu(), bad)).rejects.toMatchObject({ code: "L-DATA" });
    expect(await traceOf(options.outputDir)).toEqual(before);
  });
});

describe("evaluations", () => {
  it("come every so many steps and at the end, and the adapter of the best is written", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { evalEvery: 3 });
    const summary = await trainRun(cpu(), options);
    const lines = await readMetrics(join(options.outputDir, "metrics.jsonl"));
    const evaluations = lines.flatMap((line) => ("eval_loss" in line ? [line] : []));
    expect(evaluations.map(({ step }) => step)).toEqual([3, 6, 8]);
    const best = evaluations.reduce((a, b) => (b.eval_loss < a.eval_loss ? b : a));
    expect(summary).toMatchObject({ adapter_step: best.step, eval_loss: best.eval_loss });
    const stopped = tinyOptions(files, temporaryFolder(), "ladder", { evalEvery: 3 });
    const onEvaluation = vi.fn();
    await runUntil(cpu(), stopped, 3, { onEvaluation }); // who stops a run waits for no evaluation
    expect(onEvaluation).not.toHaveBeenCalled();
    await trainRun(cpu(), { ...options, existing: "resume" }); // nothing is left to do, or to evaluate
    expect(await readMetrics(join(options.outputDir, "metrics.jsonl"))).toEqual(lines);
  });

  it.each([
    ["spoils what it learns", 3],
    ["learns nothing", 0],
  ])(
    "end a run that %s, and the best adapter, of the first, is the one that is written",
    async (_, learningRate) => {
      const options = tinyOptions(files, temporaryFolder(), "full", {
        steps: 60,
        learningRate,
        schedule: "constant",
        warmupSteps: 0,
        evalEvery: 2,
        patience: 3,
      });
      const summary = await trainRun(cpu(), options);
      expect(summary).toMatchObject({ stop_reason: "patience", stopped_early: true });
      expect(summary.steps).toBeLessThan(60);
      expect(summary.steps - summary.adapter_step).toBe(3 * 2);
      const evaluations = (await readMetrics(join(options.outputDir, "metrics.jsonl"))).flatMap((line) =>
        "eval_loss" in line ? [line.eval_loss] : [],
      );
      expect(summary.eval_loss).toBe(Math.min(...evaluations));
      expect(evaluations.length).toBe(summary.steps / 2);
    },
  );
});
