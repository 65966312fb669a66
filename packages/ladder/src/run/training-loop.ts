/** The steps of a run, with what happens between them: metrics, evaluations, checkpoints, and the ways to end. */
import { type MemorySample, SidenetError } from "@sidenet/tensor";
import type { BatchStream, StreamedBatch } from "../data/batch-stream.ts";
import { damagedWeights } from "../not-finite.ts";
import type { StepReport, Trainer } from "../trainer.ts";
import type { EvalMetrics, MetricsLine, Sample, StepMetrics } from "./metrics.ts";
import type { RunState } from "./run-state.ts";
import { memoryOver, memoryPoints, type StepProfile, timeOver } from "./step-profile.ts";

/** Why a run ended: all steps done, asked to stop, or no better evaluation for a while. */
export type StopReason = "done" | "signal" | "patience";

/** Steps in a row that may be skipped: after these, nothing will get better by itself. */
const MAX_SKIPPED = 10;

/** How long a run goes on, and how often it stops to look. */
export interface LoopOptions {
  readonly steps: number;
  /** Batches whose gradients make one step. Default 1. */
  readonly gradientAccumulation?: number;
  /** Steps from one checkpoint to the next, one more at the end. Null, the default: no checkpoints. */
  readonly saveEvery?: number | null;
  /** Steps from one evaluation of the held-out records to the next; the best adapter is kept then. Null: the loop makes none. */
  readonly evalEvery?: number | null;
  /** Evaluations in a row without a better loss after which the run ends. Null: it does not. */
  readonly patience?: number | null;
  /** A step whose loss or gradient is not finite ends the run (default), or is left out. */
  readonly onNonFinite?: "stop" | "skip";
}

/** What the loop tells while it goes. Every call is optional to act on. */
export interface LoopEvents {
  /** After each step. */
  onStep?(metrics: StepMetrics): void;
  /** After each evaluation of the held-out records. */
  onEvaluation?(metrics: EvalMetrics): void;
  /** After a checkpoint is kept; `step` steps are done by then. */
  onCheckpoint?(step: number): void;
  /** Something that the user should know: a damaged checkpoint, a skipped step. */
  onNote?(text: string): void;
}

/** Where metrics are kept; the loop waits for each line. */
export interface RunLog {
  /** Takes a line; the next step begins when it has. */
  append(line: MetricsLine): Promise<void>;
  /** Resolves when every line is safe: before a checkpoint. */
  flush(): Promise<void>;
}

/** Where checkpoints are kept. */
export interface RunCheckpoints {
  /** Keeps all that the run needs to go on from here. */
  save(trainer: Trainer, state: RunState): Promise<unknown>;
  /** Keeps the adapter as the best so far. */
  saveBest(trainer: Trainer, state: RunState): Promise<void>;
}

/** What a loop is made of. */
export interface LoopParts {
  readonly trainer: Trainer;
  readonly stream: BatchStream;
  readonly log: RunLog;
  /** Null: none are kept. */
  readonly checkpoints: RunCheckpoints | null;
  readonly options: LoopOptions;
  readonly events: LoopEvents;
  readonly signal: AbortSignal | null;
  /** Loss on the held-out records, and a text where one is wanted. */
  evaluate(): Promise<{ loss: number; sample: Sample | null }>;
  /** Given the live bytes after each op of this process's second step. */
  readonly writeTimeline?: ((samples: readonly MemorySample[]) => Promise<void>) | null;
}

/** Runs the steps of a run from a state on, until they are done or it is asked to stop. */
export class TrainingLoop {
  readonly #parts: LoopParts;
  #state: RunState;
  #savedStep: number | null;
  #ownSteps = 0;
  #profile: Partial<StepProfile> = {};
  /** Of the step just done, for `writeTimeline`. */
  #unwritten: readonly MemorySample[] | null = null;

  /** `resumed`: the state comes from a checkpoint, which the trainer has read. */
  constructor(parts: LoopParts, state: RunState, resumed: boolean) {
    this.#parts = parts;
    this.#state = state;
    this.#savedStep = resumed ? state.counters.step : null;
  }

  /** How far the run has come. */
  get state(): RunState {
    return this.#state;
  }

  /** Steps done at the last checkpoint, of this process or an earlier one; null: there is none. */
  get savedStep(): number | null {
    return this.#savedStep;
  }

  /** Null before the third step. */
  get profile(): StepProfile | null {
    const { memory, time, clock } = this.#profile;
    return memory && time && clock ? { memory, time, clock } : null;
  }

  /** Throws `L-DIVERGED`, and what the trainer and the disk throw. */
  async run(): Promise<StopReason> {
    const { options, signal } = this.#parts;
    for (;;) {
      const { step } = this.#state.counters;
      if (!signal?.aborted && this.#evaluationIsDue(step)) await this.#evaluate(step);
      const reason = this.#reasonToStop(step);
      const due = options.saveEvery != null && step % options.saveEvery === 0;
      if (reason || due) await this.#save();
      if (reason) return reason;
      await this.#trainStep(step);
    }
  }

  #evaluationIsDue(step: number): boolean {
    const { evalEvery, steps } = this.#parts.options;
    if (evalEvery == null || step === 0 || this.#state.evaluation.step === step) return false;
    return step % evalEvery === 0 || step >= steps;
  }

  #reasonToStop(step: number): StopReason | null {
    const { options, signal } = this.#parts;
    if (step >= options.steps) return "done";
    if (options.patience != null && this.#state.evaluation.withoutGain >= options.patience) return "patience";
    return signal?.aborted ? "signal" : null;
  }

  async #evaluate(step: number): Promise<void> {
    const { evaluate, log, checkpoints, trainer, events } = this.#parts;
    const { loss, sample } = await evaluate();
    const line: EvalMetrics = { step, eval_loss: loss, ...(sample ? { sample } : {}) };
    const better = loss < (this.#state.best?.loss ?? Number.POSITIVE_INFINITY);
    this.#state = {
      ...this.#state,
      evaluation: { step, withoutGain: better ? 0 : this.#state.evaluation.withoutGain + 1 },
      best: better ? { step, loss } : this.#state.best,
    };
    if (better) await checkpoints?.saveBest(trainer, this.#state);
    await log.append(line);
    events.onEvaluation?.(line);
  }

  async #save(): Promise<void> {
    const { checkpoints, trainer, log, events } = this.#parts;
    const { step } = this.#state.counters;
    if (!checkpoints || step === 0 || this.#savedStep === step) return;
    await log.flush();
    await checkpoints.save(trainer, this.#state);
    this.#savedStep = step;
    events.onCheckpoint?.(step);
  }

  async #trainStep(step: number): Promise<void> {
    const { trainer, stream, log, options, events } = this.#parts;
    const { counters } = trainer;
    const batches: StreamedBatch[] = [];
    while (batches.length < (options.gradientAccumulation ?? 1)) batches.push(await stream.next());
    const started = performance.now();
    const flops = trainer.decoder.device.flops;
    const report = await this.#watched(() => trainer.step(batches.map(({ batch }) => batch)));
    const seconds = (performance.now() - started) / 1000;
    if (!report.updated) {
      const sources = batches.flatMap((batch) => batch.sources);
      await this.#notFinite(step, report, sources, counters);
    }
    this.#state = {
      ...this.#state,
      counters: trainer.counters,
      data: stream.position,
      tokens: this.#state.tokens + report.tokens,
      seconds: this.#state.seconds + seconds,
      flops: this.#state.flops + trainer.decoder.device.flops - flops,
      skippedInARow: report.updated ? 0 : this.#state.skippedInARow + 1,
    };
    const line = this.#lineOf(step, report, seconds);
    await log.append(line);
    await this.#writeTimeline();
    events.onStep?.(line);
  }

  /** Called after the step was timed. */
  async #writeTimeline(): Promise<void> {
    const { writeTimeline } = this.#parts;
    if (!writeTimeline || this.#unwritten === null) return;
    await writeTimeline(this.#unwritten);
    this.#unwritten = null;
  }

  #lineOf(step: number, report: StepReport, seconds: number): StepMetrics {
    const { memory } = this.#parts.trainer.decoder.device;
    const peak = memory.peak(0);
    const finite = (value: number) => (Number.isFinite(value) ? value : null);
    return {
      step,
      loss: finite(report.loss),
      grad_norm: finite(report.gradNorm),
      learning_rate: report.learningRate,
      tokens: report.tokens,
      seconds,
      tokens_per_second: report.tokens / seconds,
      live_bytes: memory.liveBytes,
      peak_bytes: peak.peakBytes,
      peak_bytes_by_category: peak.byCategory,
      ...(report.updated ? {} : { skipped: true as const }),
    };
  }

  /** Looks into this process's second and third step: the first one compiles kernels. */
  async #watched(body: () => Promise<StepReport>): Promise<StepReport> {
    const { device } = this.#parts.trainer.decoder;
    const own = this.#ownSteps++;
    if (own === 1) {
      const { result, samples } = await memoryOver(device, body);
      this.#profile = { ...this.#profile, memory: memoryPoints(samples) };
      if (this.#parts.writeTimeline) this.#unwritten = samples;
      return result;
    }
    if (own === 2) {
      const { result, time, clock } = await timeOver(device, body);
      this.#profile = { ...this.#profile, time, clock };
      return result;
    }
    return body();
  }

  /** Nothing was updated. Notes it and lets the run go on, or saves what there is and throws `L-DIVERGED`. */
  async #notFinite(
    step: number,
    { loss, gradNorm, learningRate }: StepReport,
    sources: readonly string[],
    before: Trainer["counters"],
  ): Promise<void> {
    const { options, events, trainer, checkpoints } = this.#parts;
    const what = Number.isFinite(loss)
      ? `gradient norm of step ${step} is ${gradNorm}`
      : `loss of step ${step} is ${loss}`;
    const where = `the ${what} (learning rate ${learningRate}, records: ${sources.join("; ")})`;
    const inARow = this.#state.skippedInARow + 1;
    if (options.onNonFinite === "skip" && inARow < MAX_SKIPPED) {
      events.onNote?.(`${where}: the step is skipped`);
      return;
    }
    trainer.counters = before; // the checkpoint is of the moment before this step
    await this.#save();
    const damaged = await damagedWeights(trainer.decoder);
    const cure =
      damaged ??
      (options.onNonFinite === "skip"
        ? `It was the ${inARow}th in a row. Try a lower --learning-rate or a longer --warmup-steps.`
        : "Look at these records, try a lower --learning-rate or a longer --warmup-steps, or leave such steps out with " +
          `--on-nonfinite skip${checkpoints ? " --resume" : ""}; --detect-anomaly names the op.`);
    throw new SidenetError("L-DIVERGED", `${where}; the parameters are as they were before it. ${cure}`);
  }
}
