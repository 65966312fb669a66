// Evaluations of a run keep to the memory options that its steps keep to.
import { beforeAll, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { type TrainRunOptions, trainRun } from "../src/node/train-run.ts";
import { cpu, tinyOptions, writeTinyFiles } from "./tiny-run.ts";

let files: Awaited<ReturnType<typeof writeTinyFiles>>;
beforeAll(async () => {
  files = await writeTinyFiles(temporaryFolder());
});

/** What the evaluations before the first step and after the last take beyond what is live before them, and the step. */
async function peaksOf(memory: TrainRunOptions["memory"]) {
  const device = cpu();
  const peaks: number[] = [];
  let live = 0;
  const reset = () => {
    live = device.memory.liveBytes;
    device.memory.resetPeak();
  };
  const take = () => {
    peaks.push(device.memory.peak().peakBytes - live);
  };
  const change = { memory, steps: 1, batchSize: 8, heldOut: 8, evalEvery: 1 };
  const options = tinyOptions(files, temporaryFolder(), "ladder", change);
  await trainRun(device, options, {
    onReady: reset,
    onStart: () => {
      take();
      reset();
    },
    onStep: () => {
      take();
      reset();
    },
    onEvaluation: take,
  });
  return peaks;
}

it.each([
  ["rows of a micro-batch", { microBatchSize: 1 }, 1 / 4],
  ["tokens of a chunk", { chunkTokens: 2 }, 7 / 8],
])("an evaluation takes the %s at a time", async (_, memory, share) => {
  const whole = await peaksOf({});
  const parts = await peaksOf(memory);
  for (const when of [0, 2]) expect(parts[when]).toBeLessThan(whole[when] * share);
  expect(parts[0]).toBeLessThan(parts[1]);
});
