// Pretrains a small decoder from random weights: every weight is trained, on windows of a corpus of token ids.
//
//   node examples/pretrain/pretrain.mjs --corpus out/corpus --output out/tiny-books --minutes 4
//
// --corpus is a folder with tokenizer.json, train.u16 and dev.u16 (train-tokenizer.mjs and tokenize.mjs make them), --model
// one with the config.json. The output folder becomes a model: model.safetensors (f16, the best on held-out text so far),
// config.json, tokenizer; beside it log.jsonl, and state.safetensors, from which the same command goes on.

import { appendFile, copyFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { parseArgs } from "node:util";
import { makeSchedule } from "@sidenet/autograd";
import {
  BatchStream,
  Decoder,
  evaluateLoss,
  generate,
  inBatches,
  initializeWeights,
  loadWeights,
  makeAdapter,
  parseModelConfig,
  Trainer,
} from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { firstWindows, readTokens, windowsOf } from "./corpus.mjs";
import { loadState, saveModel, saveState } from "./state.mjs";

const text = (value) => ({ type: "string", default: value });
const OPTIONS = {
  corpus: text("out/corpus"),
  model: text(import.meta.dirname),
  output: text("out/tiny-books"),
  device: text("auto"),
  minutes: { type: "string" }, // the run's length by the clock, or
  tokens: { type: "string" }, // by its tokens
  "batch-size": text("8"),
  length: text("256"),
  "learning-rate": text("3e-3"),
  "weight-decay": text("0.1"),
  warmup: text("0.03"), // share of the run
  seed: text("0"),
  "report-seconds": text("60"), // between evaluations, each with a checkpoint
  "held-out-rows": text("64"), // of an evaluation on the way; the last one takes all
};

/** Every option but the paths as a number. */
function readOptions() {
  const { values } = parseArgs({ options: OPTIONS });
  const { corpus, model, output, device, ...rest } = values;
  const numbers = Object.entries(rest).map(([name, value]) => {
    const number = Number(value);
    if (!(number >= 0 && Number.isFinite(number))) throw new Error(`--${name} is ${value}, wanted a number.`);
    return [name, number];
  });
  const options = { corpus, model, output, device, ...Object.fromEntries(numbers) };
  if ((options.minutes === undefined) === (options.tokens === undefined))
    throw new Error("give --minutes or --tokens: how long to train.");
  return options;
}

const round = (value, digits) => Number(value.toFixed(digits));

/** Steps asked for between two reads, which wait for the device. */
const STEPS_AT_A_TIME = 10;

/** Windows start at every quarter of their length: each pass over the corpus cuts it elsewhere. */
const WINDOWS_A_LENGTH = 4;

/** Rows of an evaluation's batch. */
const HELD_OUT_BATCH = 8;

class Run {
  /** Where the run is; `best` is the lowest held-out loss so far. */
  place = { step: 0, tokens: 0, seconds: 0, best: Number.POSITIVE_INFINITY };

  constructor(options, config, device, { train, dev }) {
    const { seed, length } = options;
    this.options = options;
    this.train = train;
    this.dev = dev;
    this.stream = new BatchStream(windowsOf(train.tokens, length, length / WINDOWS_A_LENGTH), {
      batchSize: options["batch-size"],
      seed,
      padId: config.padTokenId,
      maxLength: length,
    });
    this.decoder = new Decoder(config, initializeWeights(device, config, { seed }));
    this.adapter = makeAdapter({ method: "full" }, this.decoder, "none");
    const lr = options["learning-rate"];
    // The rate follows the run in thousandths, since a run by the clock does not know its number of steps.
    const warmupSteps = Math.round(1000 * options.warmup);
    const schedule = makeSchedule({ kind: "cosine", lr, finalLr: lr / 20, warmupSteps, totalSteps: 1000 });
    this.trainer = new Trainer(this.decoder, this.adapter, {
      learningRate: () => schedule(Math.min(999, Math.floor(1000 * this.progress))),
      weightDecay: options["weight-decay"],
      betas: [0.9, 0.95],
    });
    this.statePath = join(options.output, "state.safetensors");
  }

  /** From 0 to 1. */
  get progress() {
    const { minutes, tokens } = this.options;
    return minutes === undefined ? this.place.tokens / tokens : this.place.seconds / (60 * minutes);
  }

  async resume() {
    const saved = await loadState(this.statePath, this.decoder.weights, this.trainer.optimizer);
    if (!saved) return;
    this.place = saved;
    this.stream.seek(saved.data);
  }

  /** A few steps; the loss of the last one. */
  async steps() {
    const started = performance.now();
    let last = 0;
    for (let i = 0; i < STEPS_AT_A_TIME; i++) {
      const { batch } = await this.stream.next();
      const { loss, norm } = this.trainer.dispatchStep(batch);
      norm.dispose();
      if (i + 1 === STEPS_AT_A_TIME) last = await loss.item();
      loss.dispose();
      this.place.step++;
      this.place.tokens += batch.inputIds.length;
    }
    this.place.seconds += (performance.now() - started) / 1000;
    if (!Number.isFinite(last))
      throw new Error(`step ${this.place.step}: the loss is ${last}. Lower --learning-rate.`);
    return last;
  }

  /** Loss on the first `count` windows of held-out text. */
  async heldOutLoss(decoder, count) {
    const { length } = this.options;
    const records = await firstWindows(this.dev.tokens, length, count);
    return evaluateLoss(decoder, null, inBatches(records, HELD_OUT_BATCH, decoder.config.padTokenId, length));
  }

  /** Per byte of held-out text, so that tokenizers can be compared. */
  bitsPerByte(loss) {
    return (loss / Math.log(2)) * (this.dev.tokens.length / this.dev.bytes);
  }

  /** Evaluates, logs, keeps the model if it is the best so far, and the state in any case. */
  async report(trainLoss) {
    const { place, decoder, options } = this;
    const heldOut = await this.heldOutLoss(decoder, options["held-out-rows"]);
    await this.log({
      step: place.step,
      passes: round(place.tokens / this.train.tokens.length, 3),
      seconds: round(place.seconds, 1),
      train_loss: round(trainLoss, 4),
      held_out_loss: round(heldOut, 4),
      bits_per_byte: round(this.bitsPerByte(heldOut), 4),
      tokens_per_second: Math.round(place.tokens / place.seconds),
    });
    if (heldOut < place.best) {
      place.best = heldOut;
      await saveModel(join(options.output, "model.safetensors"), decoder.weights);
    }
    const state = { ...place, data: this.stream.position };
    await saveState(this.statePath, decoder.weights, this.trainer.optimizer, state);
  }

  async log(line) {
    console.log(JSON.stringify(line));
    await appendFile(join(this.options.output, "log.jsonl"), `${JSON.stringify(line)}\n`);
  }

  dispose() {
    this.trainer.dispose();
    this.adapter.dispose();
    this.decoder.dispose();
  }
}

async function train(run) {
  const { options, place } = run;
  let losses = [];
  let reported = place.seconds;
  while (run.progress < 1) {
    losses.push(await run.steps());
    if (run.place.seconds - reported < options["report-seconds"] && run.progress < 1) continue;
    await run.report(losses.reduce((a, b) => a + b, 0) / losses.length);
    losses = [];
    reported = run.place.seconds;
  }
}

/** The model as its files have it: loss on all held-out text, and how it goes on. */
async function judge(run, device, prompt = "Once upon a time") {
  const model = await openModel(run.options.output);
  const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
  try {
    const loss = await run.heldOutLoss(decoder, Number.POSITIVE_INFINITY);
    const tokenizer = await model.tokenizer();
    const sampling = { temperature: 0.8, topK: 0, topP: 0.9, minP: 0, repetitionPenalty: 1, seed: 1 };
    const ids = await generate(decoder, null, tokenizer.encode(prompt), {
      maxTokens: 80,
      stopIds: [],
      sampling,
    });
    await run.log({
      device: `${device.kind}: ${device.label}`,
      parameters: decoder.weights.count,
      held_out_loss_of_all: round(loss, 4),
      bits_per_byte: round(run.bitsPerByte(loss), 4),
      sample: prompt + tokenizer.decode(ids),
    });
  } finally {
    decoder.dispose();
    await model.close();
  }
}

async function main() {
  const options = readOptions();
  const config = parseModelConfig(JSON.parse(await readFile(join(options.model, "config.json"), "utf8")));
  const tokens = {
    train: await readTokens(join(options.corpus, "train.u16")),
    dev: await readTokens(join(options.corpus, "dev.u16")),
  };
  await mkdir(options.output, { recursive: true });
  await copyFile(join(options.model, "config.json"), join(options.output, "config.json"));
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    await copyFile(join(options.corpus, name), join(options.output, name));
  const { device } = await openDevice(options.device);
  const run = new Run(options, config, device, tokens);
  try {
    await run.resume();
    const { step } = run.place;
    console.log(
      `${run.adapter.parameters.count} parameters, ${tokens.train.tokens.length} tokens, ` +
        `${device.kind}: ${device.label}${step > 0 ? `, from step ${step} on` : ""}`,
    );
    await train(run);
    await judge(run, device);
  } finally {
    run.dispose();
    device.dispose();
    releaseDawn();
  }
}

main().then(
  () => process.exit(0), // a driver's threads would keep the process alive
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
