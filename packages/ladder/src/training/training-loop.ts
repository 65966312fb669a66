/** The loop over the steps of a run, with metrics, evaluations and checkpoints. */
import { type MemorySample, SidenetError } from "@sidenet/tensor";
import type { BatchStream, StreamedBatch } from "../data/batch-stream.ts";
import { damagedWeights, SLOWER } from "../not-finite.ts";
import type { EvalMetrics, MetricsLine, Sample, StepMetrics } from "./metrics.ts";
import type { RunState } from "./run-state.ts";
import { memoryOver, memoryPoints, type StepProfile, timeOver } from "./step-profile.ts";
import type { StepReport, Trainer } from "./trainer.ts";

/** Why a run ended: all steps done, aborted by its signal, or no better evaluation for `patience` evaluations. */
export type StopReason = "done" | "signal" | "patience";

/** After this many consecutive steps that are not finite, the run ends even if they are skipped. */
const MAX_SKIPPED = 10;

/** How many steps a run has, and how often it evaluates and saves. */
export interface LoopOptions {
  readonly steps: number;
  /** Batches whose gradients are accumulated for one step. Default 1. */
  readonly gradientAccumulation?: number;
  /** Steps between checkpoints; there is one more at the end. Null, the default: no checkpoints. */
  readonly saveEvery?: number | null;
  /** Steps between evaluations on the held-out records, of which the best adapter is saved. Null, the default: none. */
  readonly evalEvery?: number | null;
  /** The run ends after this many consecutive evaluations without a better loss. Null, the default: it does not. */
  readonly patience?: number | null;
  /** Whether a step whose loss or gradient is not finite ends the run (the default) or is skipped. */
  readonly onNonFinite?: "stop" | "skip";
}

/** Callbacks of the loop. */
export interface LoopEvents {
  /** After each step. */
  onStep?(metrics: StepMetrics): void;
  /** After each evaluation on the held-out records. */
  onEvaluation?(metrics: EvalMetrics): void;
  /** After a checkpoint was saved, with the number of steps done. */
  onCheckpoint?(step: number): void;
  /** A message for the user, such as about a damaged checkpoint or a skipped step. */
  onNote?(text: string): void;
}

/** Where metrics are written. */
export interface RunLog {
  /** Writes a line; the loop waits for it. */
  append(line: MetricsLine): Promise<void>;
  /** Resolves when every line is on the disk; called before a checkpoint. */
  flush(): Promise<void>;
}

/** Where checkpoints are saved. */
export interface RunCheckpoints {
  /** Saves everything needed to resume the run from here. */
  save(trainer: Trainer, state: RunState): Promise<unknown>;
  /** Saves the adapter as the best so far. */
  saveBest(trainer: Trainer, state: RunState): Promise<void>;
}

/** The parts of a training loop. */
export interface LoopParts {
  readonly trainer: Trainer;
  readonly stream: BatchStream;
  /** Null: none are written. */
  readonly log: RunLog | null;
  /** Null: none are saved. */
  readonly checkpoints: RunCheckpoints | null;
  readonly options: LoopOptions;
  readonly events: LoopEvents;
  readonly signal: AbortSignal | null;
  /** The loss on the held-out records, and a sample if one is wanted. */
  evaluate(): Promise<{ loss: number; sample: Sample | null }>;
  /** Called with the memory of each op of this process's second step. */
  readonly writeTimeline?: ((samples: readonly MemorySample[]) => Promise<void>) | null;
}

/** Runs the steps of a run from a given state until they are done or the signal aborts. */
export class TrainingLoop {
  readonly #parts: LoopParts;
  #state: RunState;
  #savedStep: number | null;
  #ownSteps = 0;
  #profile: Partial<StepProfile> = {};
  /** Memory samples of the last step that `writeTimeline` has not got yet. */
  #unwritten: readonly MemorySample[] | null = null;

  /** `resumed`: the state is that of a checkpoint which the trainer has restored. */
  constructor(parts: LoopParts, state: RunState, resumed: boolean) {
    this.#parts = parts;
    this.#state = state;
    this.#savedStep = resumed ? state.counters.step : null;
  }

  /** The progress of the run. */
  get state(): RunState {
    return this.#state;
  }

  /** Steps done at the last checkpoint, of this or an earlier process; null: there is none. */
  get savedStep(): number | null {
    return this.#savedStep;
  }

  /** The profile of a step; null before the third step of this process. */
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
    await log?.append(line);
    events.onEvaluation?.(line);
  }

  async #save(): Promise<void> {
    const { checkpoints, trainer, log, events } = this.#parts;
    const { step } = this.#state.counters;
    if (!checkpoints || step === 0 || this.#savedStep === step) return;
    await log?.flush();
    await checkpoints.save(trainer, this.#state);
    this.#savedStep = step;
    events.onCheckpoint?.(step);
  }

  async #trainStep(step: number): Promise<void> {
    const { trainer, stream, log, options, events } = this.#parts;
    const batches: StreamedBatch[] = [];
    while (batches.length < (options.gradientAccumulation ?? 1)) batches.push(await stream.next());
    const started = performance.now();
    const flops = trainer.decoder.device.flops;
    const report = await this.#profiled(() => trainer.step(batches.map(({ batch }) => batch)));
    const seconds = (performance.now() - started) / 1000;
    if (!report.updated) {
      const sources = batches.flatMap((batch) => batch.sources);
      await this.#notFinite(step, report, sources);
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
    await log?.append(line);
    await this.#writeTimeline();
    events.onStep?.(line);
  }

  /** Writes the memory samples of a step, after it was timed. */
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

  /** Runs a step; profiles the memory of this process's second and the time of its third. (The first compiles kernels.) */
  async #profiled(body: () => Promise<StepReport>): Promise<StepReport> {
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

  /** Handles a step that updated nothing: either notes it, or saves a checkpoint of before the step and throws `L-DIVERGED`. */
  async #notFinite(
    step: number,
    { loss, gradNorm, learningRate }: StepReport,
    sources: readonly string[],
  ): Promise<void> {
    const { options, events, trainer, checkpoints } = this.#parts;
    const what = Number.isFinite(loss)
      ? `gradient norm of step ${step + 1} is ${gradNorm}`
      : `loss of step ${step + 1} is ${loss}`;
    const where = `the ${what} (learning rate ${learningRate}, records: ${sources.join("; ")})`;
    const inARow = this.#state.skippedInARow + 1;
    if (options.onNonFinite === "skip" && inARow < MAX_SKIPPED) {
      events.onNote?.(`${where}: the step is skipped`);
      return;
    }
    await this.#save(); // the state is still that of before this step
    const damaged = await damagedWeights(trainer.decoder);
    const cure =
      damaged ??
      (options.onNonFinite === "skip"
        ? `It was the ${inARow}th in a row: ${SLOWER}.`
        : `Look at these records, ${SLOWER}, or skip such steps with --on-nonfinite skip${checkpoints ? " --resume" : ""}; ` +
          "--detect-anomaly names the op.");
    throw new SidenetError("L-DIVERGED", `${where}; the parameters are as they were before it. ${cure}`);
  }
}
