// What can go wrong while a run goes on: each is told with a cure, and what was trained by then is not lost.
import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, type Device, type Tensor } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { readMetrics } from "../src/node/run/metrics-log.ts";
import { type TrainRunEvents, type TrainRunOptions, trainRun } from "../src/node/train-run.ts";
import { errorOf } from "./code-of.ts";
import { cpu, tinyOptions, traceOf, writeTinyFiles } from "./tiny-run.ts";

/** Errors that the disk gives from now on, by what a path contains. */
const disk = vi.hoisted(() => ({
  fault: null as null | { code: string; path: RegExp; during: "open" | "write" },
}));

vi.mock("node:fs/promises", async (original) => {
  const fs = await original<typeof import("node:fs/promises")>();
  const failure = (code: string) => Object.assign(new Error(`${code}: as the test wants`), { code });
  const open: typeof fs.open = async (path, flags, mode) => {
    const { fault } = disk;
    const hit = fault !== null && flags !== "r" && flags !== undefined && fault.path.test(String(path));
    if (hit && fault.during === "open") throw failure(fault.code);
    const file = await fs.open(path, flags, mode);
    if (hit) {
      const fail = async () => {
        throw failure(fault.code);
      };
      Object.assign(file, { write: fail, appendFile: fail });
    }
    return file;
  };
  return { ...fs, open };
});

const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
beforeAll(async () => {
  files = await writeTinyFiles(root);
});
afterEach(() => {
  disk.fault = null;
});

const failureOf = (device: Device, options: TrainRunOptions, events: TrainRunEvents = {}) =>
  errorOf(trainRun(device, options, events));

/** That a run, mended and resumed, is the run that never failed. */
async function expectResumes(options: TrainRunOptions, from: number) {
  const whole = { ...options, outputDir: temporaryFolder() };
  await trainRun(cpu(), whole);
  const resumed = await trainRun(cpu(), { ...options, existing: "resume" });
  expect(resumed.resumed_from).toBe(from);
  expect(await traceOf(options.outputDir)).toEqual(await traceOf(whole.outputDir));
}

const temporaryFiles = async (folder: string) =>
  (await readdir(folder, { recursive: true })).filter((name) => name.includes(".tmp"));

describe("a disk", () => {
  it.each([
    ["ENOSPC", "write", "L-DISK-FULL", "the disk is full"],
    ["EDQUOT", "write", "L-DISK-FULL", "quota"],
    ["EROFS", "open", "L-FILE", "read-only"],
    ["EACCES", "open", "L-FILE", "no permission"],
  ] as const)(
    "that fails with %s at a checkpoint leaves the one before it",
    async (code, during, kind, text) => {
      const options = tinyOptions(files, temporaryFolder(), "lora");
      const events = {
        onCheckpoint: () => {
          disk.fault = { code, path: /step-0+6/, during };
        },
      };
      const error = await failureOf(cpu(), options, events);
      expect(error.code).toBe(kind);
      for (const part of [text, "step-000006", "checkpoint after 3 steps is intact", "--resume"])
        expect(error.message).toContain(part);
      expect(await temporaryFiles(options.outputDir)).toEqual([]);
      disk.fault = null;
      await expectResumes(options, 3);
    },
  );

  it("that is full for metrics ends the run with what to do", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { saveEvery: 1 });
    const events = {
      onStart: () => {
        disk.fault = { code: "ENOSPC", path: /metrics\.jsonl$/, during: "write" };
      },
    };
    const error = await failureOf(cpu(), options, events);
    expect(error.code).toBe("L-DISK-FULL");
    expect(error.message).toMatch(/metrics\.jsonl.*Free some space.*No checkpoint/);
  });

  it.each(["EROFS", "EACCES"])(
    "that cannot be written (%s) is told before the model is read",
    async (code) => {
      disk.fault = { code, path: /\.writable/, during: "open" };
      const onLoad = vi.fn();
      const error = await failureOf(cpu(), tinyOptions(files, temporaryFolder()), { onLoad });
      expect(error.code).toBe("L-FILE");
      expect(error.message).toMatch(/read-only|no permission/);
      expect(onLoad).not.toHaveBeenCalled();
    },
  );

  it("with a file where the folder should be is told as that", async () => {
    const path = join(temporaryFolder(), "file");
    await writeFile(path, "");
    const error = await failureOf(cpu(), tinyOptions(files, join(path, "run")));
    expect(error.message).toContain("a part of the path is a file");
  });
});

it("a record that is too long, found only when its step came, is told with where to resume", async () => {
  const data = join(temporaryFolder(), "many.jsonl");
  const line = (text: string) => `${JSON.stringify({ text })}\n`;
  const [short, long] = [line("a b c"), line("a b c ".repeat(20))];
  // Too many to encode them all before; the first are looked at, and the last are held out.
  await writeFile(data, short.repeat(16) + long.repeat(20_001) + short.repeat(4));
  const error = await failureOf(cpu(), tinyOptions({ ...files, data }, temporaryFolder()));
  expect(error.code).toBe("L-TOO-LONG");
  expect(error.message).toMatch(/many\.jsonl, line \d+: .*--max-length\. No checkpoint had been written/);
});

/** Gives NaN as the loss of the given steps, as a bad record would. */
class SpoiledDevice extends CpuDevice {
  readonly #steps: ReadonlySet<number>;
  step = 0;

  constructor(...steps: number[]) {
    super();
    this.#steps = new Set(steps);
  }

  override async read(tensor: Tensor) {
    const values = await super.read(tensor);
    if (tensor.shape.length === 0 && this.#steps.has(this.step)) values[0] = Number.NaN;
    return values;
  }
}

/** Counts its steps, so that the device knows when to spoil one. */
const counting = (device: SpoiledDevice): TrainRunEvents => ({
  onStart: ({ resumedFrom }) => {
    device.step = resumedFrom ?? 0;
  },
  onStep: () => {
    device.step++;
  },
});

describe("a loss that is not finite", () => {
  it("ends the run before it spoils a parameter, names the records, and the run can leave them out", async () => {
    const options = tinyOptions(files, temporaryFolder(), "ladder", { evalEvery: 100 });
    const device = new SpoiledDevice(4);
    const error = await failureOf(device, options, counting(device));
    expect(error.code).toBe("L-DIVERGED");
    expect(error.message).toMatch(
      /loss of step 5 is NaN .*records: data\.jsonl, line \d+; data\.jsonl, line \d+/,
    );
    for (const part of [
      "--on-nonfinite skip --resume",
      "--learning-rate",
      "checkpoint after 4 steps is intact",
    ])
      expect(error.message).toContain(part);
    const again = new SpoiledDevice(4);
    const notes: string[] = [];
    const summary = await trainRun(
      again,
      { ...options, existing: "resume", onNonFinite: "skip" },
      { ...counting(again), onNote: (text) => notes.push(text) },
    );
    expect(summary.resumed_from).toBe(4);
    expect(summary.loss.map((loss) => loss === null)).toEqual(
      [0, 1, 2, 3, 4, 5, 6, 7].map((step) => step === 4),
    );
    expect(notes.join("\n")).toMatch(/loss of step 5 is NaN .*data\.jsonl, line \d+.*skipped/);
    const metrics = await readMetrics(join(options.outputDir, "metrics.jsonl"));
    expect(metrics[4]).toMatchObject({ step: 4, loss: null, skipped: true });
    expect(Number.isFinite(summary.eval_loss)).toBe(true);
  });

  it("ends the run all the same after ten in a row, but not after nine and a good step", async () => {
    const good = [0, 1, 11];
    const steps = Array.from({ length: 30 }, (_, i) => i).filter((i) => !good.includes(i));
    const device = new SpoiledDevice(...steps);
    const options = tinyOptions(files, temporaryFolder(), "ladder", { steps: 40, onNonFinite: "skip" });
    const error = await failureOf(device, options, counting(device));
    expect(error.code).toBe("L-DIVERGED");
    expect(error.message).toContain("10th in a row");
    const lines = await readMetrics(join(options.outputDir, "metrics.jsonl"));
    expect(lines.length).toBe(good.length + 9 + 9);
    expect(lines.flatMap((line) => ("loss" in line && line.loss !== null ? [line.step] : []))).toEqual(good);
  });

  it("that a learning rate makes leaves the adapter of the step before in the checkpoint", async () => {
    const options = tinyOptions(files, temporaryFolder(), "full", {
      learningRate: 1e30,
      schedule: "constant",
    });
    const error = await failureOf(cpu(), options);
    expect(error.code).toBe("L-DIVERGED");
    expect(await readdir(join(options.outputDir, "checkpoints"))).toHaveLength(1);
  });
});

/** Gives NaN as the held-out loss after this step. */
class SpoiledEvaluation extends SpoiledDevice {
  override async read(tensor: Tensor) {
    const values = await super.read(tensor);
    return tensor.shape.join() === "1" && this.step === 2 ? values.fill(Number.NaN) : values;
  }
}

describe("a held-out loss that is not finite", () => {
  /** Of two steps, after the second of which the loss is spoiled. */
  const ofTwo = (change: Partial<TrainRunOptions> = {}) =>
    tinyOptions(files, temporaryFolder(), "lora", {
      ...{ steps: 2, evalEvery: 1, schedule: "constant", warmupSteps: 0, saveEvery: 100 },
      ...change,
    });

  it("ends the run with the best adapter of before", async () => {
    const one = ofTwo({ steps: 1 });
    await trainRun(cpu(), one);
    const options = ofTwo();
    const device = new SpoiledEvaluation();
    const error = await failureOf(device, options, counting(device));
    expect(error.code).toBe("L-DIVERGED");
    expect(error.message).toMatch(/held-out loss with the adapter is .*try a lower --learning-rate/);
    expect(error.message).toContain(
      `No checkpoint had been written. The best adapter by its held-out loss, that after 1 step, is in ${options.outputDir}.`,
    );
    expect((await traceOf(options.outputDir)).adapter).toBe((await traceOf(one.outputDir)).adapter);
  });

  it("is what the run ends with also where the best adapter cannot be written", async () => {
    const device = new SpoiledEvaluation();
    const events = {
      ...counting(device),
      onEvaluation: () => {
        disk.fault = { code: "ENOSPC", path: /adapter_model/, during: "write" } as const;
      },
    };
    const options = ofTwo();
    const error = await failureOf(device, options, events);
    expect(error.code).toBe("L-DIVERGED");
    expect(error.message).toMatch(/that after 1 step, could not be written: .*the disk is full/);
    expect(await readdir(options.outputDir)).not.toContain("adapter_model.safetensors");
  });

  it("says where to resume, but not from the step that has it", async () => {
    const before = ofTwo({ saveEvery: 1 });
    const device = new SpoiledEvaluation();
    const error = await failureOf(device, before, counting(device));
    expect(error.message).toContain("checkpoint after 1 step is intact: continue from it with --resume");
    const last = ofTwo({ evalEvery: null });
    const again = new SpoiledEvaluation();
    expect((await failureOf(again, last, counting(again))).message).toMatch(
      /--warmup-steps\. The checkpoint after 2 steps has the same loss: start anew with --overwrite\.$/,
    );
  });
});

describe("a device", () => {
  it("without memory left ends the run with the breakdown, the cure and the checkpoint", async () => {
    const device = new CpuDevice();
    const options = tinyOptions(files, temporaryFolder(), "lora");
    const error = await failureOf(device, options, {
      onCheckpoint: () => {
        device.memory.limitBytes = device.memory.liveBytes + 4096;
      },
    });
    expect(error.code).toBe("T-OUT-OF-MEMORY");
    for (const part of [
      "Live now",
      "weights",
      "--micro-batch",
      "checkpoint after 3 steps is intact",
      "--resume",
    ])
      expect(error.message).toContain(part);
    await expectResumes(options, 3);
  });

  it.skipIf(process.env.SIDENET_DEVICE === "cpu")(
    "that is lost ends the run with the checkpoint before it",
    async () => {
      const device = await openNodeWebGpu();
      try {
        const options = tinyOptions(files, temporaryFolder(), "ladder");
        const error = await failureOf(device, options, { onCheckpoint: () => device.gpu.destroy() });
        expect(error.code).toBe("T-DEVICE-LOST");
        for (const part of ["open a new device", "checkpoint after 3 steps is intact", "--resume"])
          expect(error.message).toContain(part);
        const resumed = await trainRun(cpu(), { ...options, existing: "resume" });
        expect(resumed).toMatchObject({ resumed_from: 3, steps: 8 });
      } finally {
        device.dispose();
      }
    },
  );
});
