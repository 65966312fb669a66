// Compares how well methods learn from the same tokens: the held-out loss after one run each, on the same NF4 backbone.
//
//   npm run build && nice node bench/quality.mjs --variants variants.json [--model M] [--data records.jsonl] [--out log]
//                                                [--calibrate]
//
// variants.json: [{"name": "ladder 5e-3", "lr": 5e-3, "method": {"method": "ladder", "ladder": {"reduction": 4}}}, ...]. "method"
// has the fields of `MethodOptions`; "sideNorm" overrides the initial value of a side network's last norm. To save time,
// weights are dequantized once for all steps, and the hidden states of the frozen backbone are computed once for all side
// networks; neither changes a result. With --calibrate, NF4 is calibrated on the training records.

import { appendFileSync, readFileSync } from "node:fs";
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import {
  BatchStream,
  Decoder,
  encodeRecord,
  evaluateLoss,
  inBatches,
  initializeAdapter,
  inMemory,
  loadWeights,
  Trainer,
} from "@sidenet/ladder";
import { convertModel, openModel, readRecords } from "@sidenet/ladder/node";
import { openDevice } from "@sidenet/tensor/node";
import { fetchModel } from "../scripts/fetch-model.mjs";
import { scriptOptions, usageError } from "../scripts/lib/options.mjs";
import { withFolder } from "../scripts/lib/work-folder.mjs";
import { dequantize } from "./shared.mjs";

const options = scriptOptions(
  {
    model: null,
    data: "examples/data/gsm8k-sample.jsonl",
    "held-out": 24,
    variants: null,
    steps: 32,
    "max-length": 128,
    "batch-size": 4,
    warmup: 5,
    seed: 0,
    device: "auto",
    out: null,
    calibrate: false,
  },
  { required: ["variants"], positive: ["held-out", "steps", "max-length", "batch-size"] },
);
const { steps, seed, "batch-size": batchSize, "max-length": maxLength } = options;
const variants = JSON.parse(readFileSync(options.variants, "utf8"));

/** A frozen decoder that computes the hidden states of a batch once and keeps them for later passes. */
class CachingDecoder extends Decoder {
  #batch = null;
  #states = new Map();

  prepare(batch, offset) {
    this.#batch = batch;
    return super.prepare(batch, offset);
  }

  hidden(ops, forward, hiddenOptions = {}) {
    if (hiddenOptions.adaptBlock || !hiddenOptions.observe) return super.hidden(ops, forward, hiddenOptions);
    const { device } = this;
    const known = this.#states.get(this.#batch);
    if (!known) {
      const states = [];
      this.#states.set(this.#batch, states);
      const observe = (index, h) => {
        h.read().then((values) => states.push({ values, shape: h.shape }));
        hiddenOptions.observe(index, h);
      };
      return super.hidden(ops, forward, { ...hiddenOptions, observe });
    }
    let h = null;
    for (const [index, { values, shape }] of known.entries()) {
      h?.dispose();
      h = device.tensor(values, shape);
      hiddenOptions.observe(index, h);
    }
    return h;
  }
}

/** Records of at most `maxLength` tokens: encoded, and as they were read. */
async function readData(tokenizer) {
  const [encoded, read] = [[], []];
  const encoding = {
    bosId: null,
    eosId: tokenizer.eosIds[0],
    maxLength: Number.MAX_SAFE_INTEGER,
    cut: false,
  };
  for await (const { record, source } of readRecords(options.data)) {
    const one = encodeRecord(record, source, tokenizer, encoding);
    if (one.inputIds.length > maxLength) continue; // skipped rather than cut
    encoded.push(one);
    read.push(record);
  }
  return { encoded, read };
}

/** Writes the model in NF4, calibrated on these records, and returns its folder. */
async function calibrate(path, read, folder) {
  const [data, output] = ["records.jsonl", "model"].map((name) => join(folder, name));
  await writeFile(data, read.map((record) => JSON.stringify(record)).join("\n"));
  const calibration = { data: [data], tokens: Number.MAX_SAFE_INTEGER };
  const options = { model: path, output, type: "nf4", adapter: null, maxShardBytes: 5e9, overwrite: false };
  await convertModel(device, { ...options, calibration });
  return output;
}

/** The weights of a model in NF4, dequantized. */
async function loadDequantized({ config, checkpoint }) {
  return dequantize(config, await loadWeights(device, config, checkpoint, { quantizeBlocks: true }));
}

const { device } = await openDevice(options.device);
const path = options.model ?? (await fetchModel());
const model = await openModel(path);
const tokenizer = await model.tokenizer();
const { encoded, read } = await readData(tokenizer);
if (encoded.length <= options["held-out"])
  usageError(
    `${options.data} has ${encoded.length} records of at most --max-length ${maxLength} tokens, of which --held-out keeps ` +
      `${options["held-out"]}: none is left to train on`,
  );
const train = encoded.slice(0, -options["held-out"]);
const weights = options.calibrate
  ? await withFolder(null, async (folder) => {
      const calibrated = await openModel(await calibrate(path, read.slice(0, train.length), folder));
      try {
        return await loadDequantized(calibrated);
      } finally {
        await calibrated.close();
      }
    })
  : await loadDequantized(model);
await model.close();
const decoder = new CachingDecoder(model.config, weights);
const heldOut = encoded.slice(train.length);
const stream = new BatchStream(inMemory(train), { batchSize, seed, maxLength });
const batches = [];
while (batches.length < steps) batches.push((await stream.next()).batch);
const evalBatches = inBatches(heldOut, batchSize, maxLength);
const tokens = batches.reduce((sum, batch) => sum + batch.attentionMask.reduce((a, b) => a + b, 0), 0);
const calibration = inBatches(train.slice(0, 16), 1, maxLength);
const report = (entry) => {
  console.log(JSON.stringify(entry));
  if (options.out) appendFileSync(options.out, `${JSON.stringify(entry)}\n`);
};
report({
  device: device.label,
  calibrated: options.calibrate,
  steps,
  batchSize,
  tokens,
  heldOut: heldOut.length,
});
report({ name: "frozen", evalLoss: await evaluateLoss(decoder, null, evalBatches) });

for (const { name, lr, method, weightDecay = 0.01, sideNorm } of variants) {
  const started = performance.now();
  const adapter = await initializeAdapter({ seed, ...method }, decoder, model.name, () => calibration);
  if (sideNorm) device.ops.fill(adapter.parameters.get("ladder.norm.weight"), { value: sideNorm });
  const learningRate = makeSchedule({
    kind: "cosine",
    lr,
    warmupSteps: Math.min(steps, options.warmup),
    totalSteps: steps,
    finalLr: 0.1 * lr,
  });
  const trainer = new Trainer(decoder, adapter, { learningRate, weightDecay });
  const losses = [];
  for (const batch of batches) losses.push((await trainer.step(batch)).loss);
  const evalLoss = await evaluateLoss(decoder, adapter, evalBatches);
  const mean = (list) => list.reduce((a, b) => a + b, 0) / list.length;
  report({
    name,
    lr,
    parameters: adapter.parameters.count,
    evalLoss,
    trainLoss: mean(losses.slice(-16)),
    seconds: (performance.now() - started) / 1000,
  });
  trainer.dispose();
  adapter.dispose();
}
process.exit(0);
