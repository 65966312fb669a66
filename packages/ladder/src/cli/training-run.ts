/** A training run with its progress shown, for `train` and `compare`. */
import type { Device } from "@sidenet/tensor";
import { type TrainRunEvents, type TrainRunOptions, type TrainSummary, trainRun } from "../node/train-run.ts";
import { showLoading } from "./download-progress.ts";
import type { Report } from "./terminal.ts";
import {
  describeEvaluation,
  describeProgress,
  describeReady,
  describeSample,
  describeStart,
  describeStep,
} from "./train-report.ts";

/** What is shown of a run; where nobody watches, a line every `logEvery` steps. */
export interface ShownRun extends TrainRunOptions {
  readonly logEvery: number;
}

/** Throws as `trainRun`. */
export async function showRun(
  device: Device,
  report: Report,
  run: ShownRun,
  signal: AbortSignal,
  onFailure?: TrainRunEvents["onFailure"],
): Promise<TrainSummary> {
  try {
    return await trainRun(device, run, { ...eventsOf(report, run), ...(onFailure && { onFailure }) }, signal);
  } finally {
    report.endBar();
  }
}

function eventsOf(report: Report, { steps, logEvery }: ShownRun): TrainRunEvents {
  let first = true;
  return {
    onLoad: showLoading(report),
    onNote: (text) => report.note(text),
    onReady: (ready) => report.note(describeReady(ready)),
    onStart: (start) => {
      const text = describeStart(start, steps);
      if (text) report.note(text);
    },
    onSample: (when, sample) => {
      report.endBar();
      report.note(describeSample(when, sample));
    },
    onEvaluation: (line) => report.note(describeEvaluation(line)),
    onStep: (line) => {
      const done = line.step + 1;
      report.bar(done, steps, describeProgress(line));
      if (!report.watched && (first || done % logEvery === 0 || done >= steps)) {
        report.note(describeStep(line, steps));
      }
      first = false;
    },
  };
}
