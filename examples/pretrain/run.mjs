// A pretraining run: AdamW on all weights from random values, with evaluations and saved states on the way.

import { appendFile, copyFile, mkdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import {
  BatchStream,
  Decoder,
  evaluateLoss,
  generate,
  inBatches,
  initializeWeights,
  loadTokenizer,
  loadWeights,
  makeAdapter,
  parseModelConfig,
  Trainer,
} from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { SetupError } from "../../scripts/lib/steps.mjs";
import { firstWindows, readTokens, windowsOf } from "./corpus.mjs";
import { loadState, saveModel, saveState } from "./state.mjs";

/** Steps between two reads of the loss, which wait for the device. */
const STEPS_AT_A_TIME = 10;

/** Windows start at every quarter of their length, so tokens occur at different positions. */
const WINDOWS_A_LENGTH = 4;

/** Batch size of evaluations. */
const HELD_OUT_BATCH = 8;

const round = (value, digits) => Number(value.toFixed(digits));
const mean = (values) => values.reduce((a, b) => a + b, 0) / values.length;

class Run {
  /** The progress that is saved; `best` is the lowest held-out loss so far. */
  place = { step: 0, tokens: 0, seconds: 0, best: null };

  constructor(device, config, corpus, options) {
    const { seed, length, batchSize, learningRate: lr, warmup, weightDecay } = options;
    this.options = options;
    this.corpus = corpus;
    this.stream = new BatchStream(windowsOf(corpus.train.tokens, length, length / WINDOWS_A_LENGTH), {
      batchSize,
      seed,
      maxLength: length,
    });
    this.decoder = new Decoder(config, initializeWeights(device, config, { seed }));
    this.adapter = makeAdapter({ method: "full" }, this.decoder, "none");
    // The schedule has 1000 steps, since the number of steps of a run limited by time is unknown.
    const warmupSteps = Math.round(1000 * warmup);
    const schedule = makeSchedule({ kind: "cosine", lr, finalLr: lr / 20, warmupSteps, totalSteps: 1000 });
    this.trainer = new Trainer(this.decoder, this.adapter, {
      learningRate: () => schedule(Math.min(999, Math.floor(1000 * this.progress))),
      weightDecay,
      betas: [0.9, 0.95],
    });
    this.statePath = join(options.output, "state.safetensors");
  }

  /** From 0 to 1, by the limit that is nearer. */
  get progress() {
    const { minutes, tokens } = this.options;
    const { place } = this;
    return Math.max(tokens ? place.tokens / tokens : 0, minutes ? place.seconds / (60 * minutes) : 0);
  }

  async resume() {
    const saved = await loadState(this.statePath, this.trainer);
    if (saved === null) return;
    const { data, ...place } = saved;
    this.place = place;
    this.stream.seek(data);
  }

  /** Trains to the end, with reports every `reportSeconds`. */
  async train() {
    let losses = [];
    let reported = this.place.seconds;
    while (this.progress < 1) {
      losses.push(await this.steps());
      if (this.place.seconds - reported < this.options.reportSeconds && this.progress < 1) continue;
      await this.report(mean(losses));
      losses = [];
      reported = this.place.seconds;
    }
  }

  /** Trains a few steps, and returns the loss of the last one. */
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
      throw new SetupError(`Step ${this.place.step}: the loss is ${last}.`, "Lower --learning-rate.");
    return last;
  }

  /** The loss of a decoder on the first `count` windows of held-out text. */
  async heldOutLoss(decoder, count) {
    const { length } = this.options;
    const records = await firstWindows(this.corpus.dev.tokens, length, count);
    return evaluateLoss(decoder, null, inBatches(records, HELD_OUT_BATCH, length));
  }

  /** A loss in bits per byte of held-out text, which is comparable between tokenizers. */
  bitsPerByte(loss) {
    const { tokens, bytes } = this.corpus.dev;
    return (loss / Math.log(2)) * (tokens.length / bytes);
  }

  /** Evaluates, logs, and saves the state, and the model if it is the best so far. */
  async report(trainLoss) {
    const { place, decoder, options } = this;
    const heldOut = await this.heldOutLoss(decoder, options.heldOutRows);
    await this.log({
      step: place.step,
      passes: round(place.tokens / this.corpus.train.tokens.length, 3),
      seconds: round(place.seconds, 1),
      train_loss: round(trainLoss, 4),
      held_out_loss: round(heldOut, 4),
      bits_per_byte: round(this.bitsPerByte(heldOut), 4),
      tokens_per_second: Math.round(place.tokens / place.seconds),
    });
    if (place.best === null || heldOut < place.best) {
      place.best = heldOut;
      await saveModel(join(options.output, "model.safetensors"), decoder.weights);
    }
    await saveState(this.statePath, this.trainer, { ...place, data: this.stream.position });
  }

  /** Evaluates the saved model on all held-out text, and logs a sample of its text. */
  async judge(device, prompt = "Once upon a time") {
    const model = await openModel(this.options.output);
    const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
    try {
      const loss = await this.heldOutLoss(decoder, Number.POSITIVE_INFINITY);
      const tokenizer = await model.tokenizer();
      const sampling = { temperature: 0.8, topP: 0.9, seed: 1 };
      const ids = await generate(decoder, null, tokenizer.encode(prompt), {
        maxTokens: 80,
        stopIds: tokenizer.eosIds,
        sampling,
      });
      await this.log({
        device: `${device.kind}: ${device.label}`,
        parameters: decoder.weights.count,
        ...this.settings,
        held_out_loss: round(loss, 4),
        bits_per_byte: round(this.bitsPerByte(loss), 4),
        sample: prompt + tokenizer.decode(ids),
      });
      return loss;
    } finally {
      decoder.dispose();
      await model.close();
    }
  }

  /** The options on which the result depends. */
  get settings() {
    const { minutes, tokens, batchSize, length, learningRate, weightDecay, warmup, seed } = this.options;
    return { minutes, tokens, batchSize, length, learningRate, weightDecay, warmup, seed };
  }

  async log(line) {
    this.options.onLine(JSON.stringify(line));
    await appendFile(join(this.options.output, "log.jsonl"), `${JSON.stringify(line)}\n`);
  }

  dispose() {
    this.trainer.dispose();
    this.adapter.dispose();
    this.decoder.dispose();
  }
}

/**
 * Pretrains a model, or resumes from the state in the output folder. Returns the loss on all held-out text. `options` are
 * those of pretrain.mjs, and `onLine`, which receives the lines of the log.
 */
export async function pretrain(device, options) {
  const { corpus: folder, model, output } = options;
  const readJson = async (...path) => JSON.parse(await readFile(join(...path), "utf8"));
  const config = parseModelConfig(await readJson(model, "config.json"));
  const { vocabSize } = loadTokenizer(
    await readJson(folder, "tokenizer.json"),
    await readJson(folder, "tokenizer_config.json"),
  );
  if (vocabSize !== config.vocabSize)
    throw new SetupError(
      `${model}/config.json has a vocab_size of ${config.vocabSize}, but the tokenizer in ${folder} has ${vocabSize} entries.`,
      "Give --model a folder with a config.json of that size, or train-tokenizer.mjs another --size.",
    );
  const corpus = {
    train: await readTokens(join(folder, "train.u16")),
    dev: await readTokens(join(folder, "dev.u16")),
  };
  await mkdir(output, { recursive: true });
  await copyFile(join(model, "config.json"), join(output, "config.json"));
  for (const name of ["tokenizer.json", "tokenizer_config.json"])
    await copyFile(join(folder, name), join(output, name));
  const run = new Run(device, config, corpus, options);
  try {
    await run.resume();
    const { step } = run.place;
    options.onLine(
      `${run.adapter.parameters.count} parameters, ${corpus.train.tokens.length} tokens, ` +
        `${device.kind}: ${device.label}${step > 0 ? `, from step ${step} on` : ""}`,
    );
    await run.train();
    return await run.judge(device);
  } finally {
    run.dispose();
  }
}
