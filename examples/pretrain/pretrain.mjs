// Pretrains a small decoder from random weights: every weight is trained, on windows of a corpus of token ids.
//
//   node examples/pretrain/pretrain.mjs --corpus out/corpus --output out/tiny-books --minutes 4
//
// --corpus is a folder with tokenizer.json, train.u16 and dev.u16 (train-tokenizer.mjs and tokenize.mjs make them), --model
// one with the config.json. The output folder becomes a model: model.safetensors (f16, the best on held-out text so far),
// config.json, tokenizer; beside it log.jsonl, and state.safetensors, from which the same command goes on.

import { parseArgs } from "node:util";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { pretrain } from "./run.mjs";

const text = (value) => ({ type: "string", default: value });
const OPTIONS = {
  corpus: text("out/corpus"),
  model: text(import.meta.dirname),
  output: text("out/tiny-books"),
  device: text("auto"),
  minutes: { type: "string" }, // the run's length by the clock,
  tokens: { type: "string" }, // by its tokens, or what comes first of the two
  "batch-size": text("8"),
  length: text("256"),
  "learning-rate": text("3e-3"),
  "weight-decay": text("0.1"),
  warmup: text("0.03"), // share of the run
  seed: text("0"),
  "report-seconds": text("60"), // between evaluations, each with a checkpoint
  "held-out-rows": text("64"), // of an evaluation on the way; the last one takes all
};

function numberOf(values, name) {
  const number = values[name] === undefined ? null : Number(values[name]);
  if (number !== null && !(number >= 0 && Number.isFinite(number)))
    throw new Error(`--${name} is ${values[name]}, wanted a number.`);
  return number;
}

function readOptions() {
  const { values } = parseArgs({ options: OPTIONS });
  const number = (name) => numberOf(values, name);
  const options = {
    corpus: values.corpus,
    model: values.model,
    output: values.output,
    minutes: number("minutes"),
    tokens: number("tokens"),
    batchSize: number("batch-size"),
    length: number("length"),
    learningRate: number("learning-rate"),
    weightDecay: number("weight-decay"),
    warmup: number("warmup"),
    seed: number("seed"),
    reportSeconds: number("report-seconds"),
    heldOutRows: number("held-out-rows"),
  };
  if (!options.minutes && !options.tokens) throw new Error("give --minutes or --tokens: how long to train.");
  return { device: values.device, options };
}

async function main() {
  const { device: name, options } = readOptions();
  const { device } = await openDevice(name);
  try {
    await pretrain(device, { ...options, onLine: console.log });
  } finally {
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
