// How well each method learns from the same tokens: held-out loss after one run each, over one backbone in NF4.
//
//   npm run build && nice node bench/quality.mjs --variants variants.json [--model M] [--data records.jsonl] [--out log]
//                                                [--calibrate]
//
// variants.json: [{"name": "ladder 5e-3", "lr": 5e-3, "method": {"method": "ladder", "ladder": {"reduction": 4}}}, ...],
// methods as `MethodOptions` has them; `sideNorm` is another initial value of a side network's last norm than what is measured. Weights are
// quantized to NF4 and dequantized once for all steps, which computes what NF4 computes; the hidden states that a frozen
// backbone gives side networks are computed once for all variants. With --calibrate the quantization is calibrated on the
// records that are trained on.

import { appendFileSync, readFileSync } from "node:fs";
import { mkdtemp, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { makeSchedule } from "@sidenet/autograd";
import {
  BatchStream,
  Decoder,
  decoderParameters,
  denseMatrix,
  encodeRecord,
  evaluateLoss,
  inBatches,
  initializeAdapter,
  inMemory,
  loadWeights,
  Trainer,
} from "@sidenet/ladder";
import { convertModel, openModel, readRecords } from "@sidenet/ladder/node";
import { ParamStore } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";
import { fetchModel } from "../scripts/fetch-model.mjs";
import { scriptOptions } from "../scripts/lib/options.mjs";

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
  { required: ["variants"] },
);
const { steps, seed, "batch-size": batchSize, "max-length": maxLength } = options;

/** A frozen decoder that computes the hidden states of a batch once and shows them again whenever it comes back. */
class RememberingDecoder extends Decoder {
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

/** The same weights with every NF4 matrix dequantized. */
function dequantized(store, device) {
  const out = new ParamStore(device, "weights");
  for (const [name, tensor] of store) {
    if (/\.(table|absmax|scales)$/.test(name)) continue;
    out.set(name, denseMatrix(store, name, shapes.get(name) ?? tensor.shape));
  }
  return out;
}

/** Records of at most `maxLength` tokens as a run has them, and as they were read. */
async function records(tokenizer) {
  const [list, read] = [[], []];
  const encoding = {
    bosId: null,
    eosId: tokenizer.eosIds[0],
    maxLength: Number.MAX_SAFE_INTEGER,
    cut: false,
  };
  for await (const { record, source } of readRecords(options.data)) {
    const encoded = encodeRecord(record, source, tokenizer, encoding);
    if (encoded.inputIds.length > maxLength) continue; // whole problems, few of them padding
    list.push(encoded);
    read.push(record);
  }
  return { encoded: list, read };
}

/** The model in NF4, calibrated on these records. */
async function calibratedOn(path, read) {
  const folder = await mkdtemp(join(tmpdir(), "sidenet-quality-"));
  const [data, output] = ["records.jsonl", "model"].map((name) => join(folder, name));
  await writeFile(data, read.map((record) => JSON.stringify(record)).join("\n"));
  const calibration = { data: [data], tokens: Number.MAX_SAFE_INTEGER };
  await convertModel(device, {
    model: path,
    output,
    type: "nf4",
    adapter: null,
    maxShardBytes: 5e9,
    overwrite: false,
    calibration,
  });
  return openModel(output);
}

const { device } = await openDevice(options.device);
const path = options.model ?? (await fetchModel());
let model = await openModel(path);
const tokenizer = await model.tokenizer();
const { encoded, read } = await records(tokenizer);
const train = encoded.slice(0, -options["held-out"]);
if (options.calibrate) {
  await model.close();
  model = await calibratedOn(path, read.slice(0, train.length));
}
const shapes = new Map(decoderParameters(model.config).map(({ name, shape }) => [name, shape]));
const quantized = await loadWeights(device, model.config, model.checkpoint, { quantizeBlocks: true });
const decoder = new RememberingDecoder(model.config, dequantized(quantized, device));
quantized.dispose();
const heldOut = encoded.slice(train.length);
const padId = model.config.padTokenId ?? tokenizer.eosIds[0];
const stream = new BatchStream(inMemory(train), { batchSize, seed, padId, maxLength });
const batches = [];
while (batches.length < steps) batches.push((await stream.next()).batch);
const evalBatches = inBatches(heldOut, batchSize, padId, maxLength);
const tokens = batches.reduce((sum, batch) => sum + batch.attentionMask.reduce((a, b) => a + b, 0), 0);
const calibration = inBatches(train.slice(0, 16), 1, padId, maxLength);
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

for (const { name, lr, method, weightDecay = 0.01, sideNorm } of JSON.parse(
  readFileSync(options.variants, "utf8"),
)) {
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
await model.close();
process.exit(0);
