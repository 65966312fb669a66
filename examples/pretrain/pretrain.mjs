// Pretrains a small decoder from random weights on a corpus of token ids.
//
//   node examples/pretrain/pretrain.mjs --corpus out/corpus --output out/tiny-books --minutes 4
//
// --corpus is a folder with tokenizer.json, train.u16 and dev.u16, which train-tokenizer.mjs and tokenize.mjs write. --model is
// a folder with a config.json, whose vocab_size is the tokenizer's. The output folder becomes a model: model.safetensors (f16,
// the best so far on held-out text), config.json and the tokenizer. It also gets log.jsonl, and state.safetensors, from which
// the same command resumes.
//
// The run ends after --minutes or --tokens, whichever comes first. --warmup is a fraction of it. Every --report-seconds it is
// evaluated on --held-out-rows rows (at last on all) and its state is saved.

import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { scriptOptions, usageError } from "../../scripts/lib/options.mjs";
import { pretrain } from "./run.mjs";

function readOptions() {
  const values = scriptOptions(
    {
      corpus: "out/corpus",
      model: import.meta.dirname,
      output: "out/tiny-books",
      device: "auto",
      minutes: null,
      tokens: null,
      "batch-size": 8,
      length: 256,
      "learning-rate": 3e-3,
      "weight-decay": 0.1,
      warmup: 0.03,
      seed: 0,
      "report-seconds": 60,
      "held-out-rows": 64,
    },
    { positive: ["batch-size", "length", "held-out-rows"] },
  );
  const limit = (name) => {
    if (values[name] === undefined) return null;
    const number = Number(values[name]);
    if (!(number > 0)) usageError(`--${name} ${values[name]}: wanted a number above 0`);
    return number;
  };
  const options = {
    corpus: values.corpus,
    model: values.model,
    output: values.output,
    minutes: limit("minutes"),
    tokens: limit("tokens"),
    batchSize: values["batch-size"],
    length: values.length,
    learningRate: values["learning-rate"],
    weightDecay: values["weight-decay"],
    warmup: values.warmup,
    seed: values.seed,
    reportSeconds: values["report-seconds"],
    heldOutRows: values["held-out-rows"],
  };
  if (options.minutes === null && options.tokens === null)
    usageError("--minutes or --tokens is missing: how long to train");
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

await main();
process.exit(0); // the driver's threads would keep the process running
