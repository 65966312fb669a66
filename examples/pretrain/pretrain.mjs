// Pretrains a small decoder from random weights on a corpus of token ids.
//
//   node examples/pretrain/pretrain.mjs --corpus out/corpus --output out/tiny-books --minutes 4
//
// --corpus is a folder with tokenizer.json, train.u16 and dev.u16, which train-tokenizer.mjs and tokenize.mjs write. --model is
// a folder with a config.json. The output folder becomes a model: model.safetensors (f16, the best so far on held-out text),
// config.json and the tokenizer. It also gets log.jsonl, and state.safetensors, from which the same command resumes.

import { parseArgs } from "node:util";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { pretrain } from "./run.mjs";

const text = (value) => ({ type: "string", default: value });
const OPTIONS = {
  corpus: text("out/corpus"),
  model: text(import.meta.dirname),
  output: text("out/tiny-books"),
  device: text("auto"),
  minutes: { type: "string" }, // length of the run; with --tokens too, it ends at the first of the two limits
  tokens: { type: "string" },
  "batch-size": text("8"),
  length: text("256"),
  "learning-rate": text("3e-3"),
  "weight-decay": text("0.1"),
  warmup: text("0.03"), // fraction of the run
  seed: text("0"),
  "report-seconds": text("60"), // between evaluations, which save the state too
  "held-out-rows": text("64"), // rows of an evaluation; the last one uses all
};

function numberOf(values, name) {
  const number = values[name] === undefined ? null : Number(values[name]);
  if (number !== null && !(number >= 0 && Number.isFinite(number)))
    throw new Error(`--${name} ${values[name]}: wanted a number, 0 or more.`);
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
  if (!options.minutes && !options.tokens) throw new Error("Give --minutes or --tokens: how long to train.");
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
  () => process.exit(0), // the driver's threads would keep the process running
  (error) => {
    console.error(error.message);
    process.exit(1);
  },
);
