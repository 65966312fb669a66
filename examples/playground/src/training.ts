/** A training run: the library's trainer and loop, which report to the page. */
import { makeSchedule } from "@sidenet/autograd";
import {
  type Adapter,
  BatchStream,
  type Decoder,
  defaultMemory,
  defaultStorage,
  type EvalMetrics,
  encodeAdapter,
  evaluateLoss,
  inBatches,
  inMemory,
  type LoopEvents,
  newRunState,
  Trainer,
  TrainingLoop,
} from "@sidenet/ladder";
import type { Report, RunResult, RunSettings } from "./protocol.ts";
import { countTokens, type Sequences } from "./sequences.ts";

const EVALUATIONS = 6;
/** The limit of logits in memory, far below the library's default for models a hundred times as large. */
const LOSS_CHUNK_BYTES = 2 ** 20;

interface Training {
  readonly decoder: Decoder;
  readonly adapter: Adapter;
  readonly modelName: string;
  readonly data: Sequences;
  readonly settings: RunSettings;
  readonly seed: number;
  readonly signal: AbortSignal;
  tell(report: Report): void;
}

function makeTrainer({ decoder, adapter, settings }: Training): Trainer {
  const { method, steps, learningRate: lr } = settings;
  const warmupSteps = Math.min(10, Math.floor(steps / 10));
  return new Trainer(decoder, adapter, {
    ...defaultMemory(method, defaultStorage(method, decoder.device)),
    learningRate: makeSchedule({ kind: "cosine", lr, warmupSteps, totalSteps: steps }),
    weightDecay: 0,
    lossChunkBytes: LOSS_CHUNK_BYTES,
  });
}

interface LoopSetup {
  readonly trainer: Trainer;
  readonly initialLoss: number;
  readonly events: LoopEvents;
  evaluate(): Promise<number>;
}

function makeLoop(training: Training, { trainer, initialLoss, events, evaluate }: LoopSetup): TrainingLoop {
  const { decoder, data, settings, seed, signal } = training;
  const { steps, batchSize, maxLength } = settings;
  const stream = new BatchStream(inMemory(data.train), { batchSize, maxLength, seed });
  const start = {
    frozenEvalLoss: initialLoss,
    initialEvalLoss: initialLoss,
    sample: null,
  };
  return new TrainingLoop(
    {
      trainer,
      stream,
      signal,
      events,
      checkpoints: null,
      log: null,
      options: { steps, evalEvery: Math.max(1, Math.round(steps / EVALUATIONS)) },
      evaluate: async () => ({ loss: await evaluate(), sample: null }),
    },
    newRunState(start, decoder.device.label, stream.position),
    false,
  );
}

/** Trains the adapter and reports every step. Stops before the next step when `signal` is aborted. */
export async function trainAdapter(training: Training): Promise<RunResult> {
  const { decoder, adapter, data, settings, tell, modelName } = training;
  const { device, config } = decoder;
  const batches = inBatches(data.heldOut, settings.batchSize, settings.maxLength);
  const evaluate = () => evaluateLoss(decoder, adapter, batches, { lossChunkBytes: LOSS_CHUNK_BYTES });
  const initialLoss = await evaluate();
  tell({
    type: "started",
    facts: {
      trainableParameters: adapter.parameters.count,
      trainTokens: countTokens(data.train),
      initialLoss,
    },
  });
  using trainer = makeTrainer(training);
  let last: EvalMetrics | null = null;
  const events: LoopEvents = {
    onStep: (metrics) => tell({ type: "step", metrics, live: device.memory.live }),
    onEvaluation: (line) => {
      last = line;
      tell({ type: "evaluation", step: line.step, loss: line.eval_loss });
    },
    onNote: (text) => tell({ type: "note", text }),
  };
  device.memory.resetPeak();
  const loop = makeLoop(training, { trainer, initialLoss, events, evaluate });
  const reason = await loop.run();
  const { peakBytes, byCategory: peak } = device.memory.peak(0);
  const { counters, seconds, tokens } = loop.state;
  const evaluated = last as EvalMetrics | null; // what a callback sets, the compiler does not see
  const isEvaluated = evaluated?.step === counters.step;
  const base = { name: modelName, config, quantized: decoder.isQuantized };
  return {
    stopped: reason === "signal",
    steps: counters.step,
    seconds,
    tokens,
    peakBytes,
    peak,
    finalLoss: isEvaluated ? evaluated.eval_loss : await evaluate(),
    adapter: await encodeAdapter(adapter, base),
  };
}
