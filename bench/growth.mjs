// Measures how time and memory of a training step grow with the length of its sequence, from 256 to 16k tokens. Prints a table
// for docs/benchmarks.md with fitted exponents, and can draw a plot.
//
//   npm run build && node bench/growth.mjs [--threads 2] [--most 16384] [--fit-from 1024] [--svg docs/images/growth.svg]
//     [--json FILE]
//
// --fit-from is the shortest length that the exponents are fitted to: in short sequences, what does not grow dominates.
//
// One sequence; a Ladder on a small model with random weights (bench/gpu/models.mjs, "small"), on wasm, where an op has
// computed when it returns, so that each op can be timed. Memory is the allocator's. The memory of attention alone is what its
// ops allocate beside q, k and v, measured on the device meta.

import { writeFileSync } from "node:fs";
import { makeAdapter, Trainer } from "@sidenet/ladder";
import { MetaDevice } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { scriptOptions, usageError } from "../scripts/lib/options.mjs";
import { randomDecoder } from "./gpu/models.mjs";
import { renderGrowth } from "./growth-plot.mjs";

const options = scriptOptions(
  { threads: 2, most: 16_384, "fit-from": 1024, svg: null, json: null },
  { positive: ["threads"] },
);
const MIN_TOKENS = 256;
const lengths = [];
for (let tokens = MIN_TOKENS; tokens <= options.most; tokens *= 2) lengths.push(tokens);
const fitted = lengths.filter((tokens) => tokens >= options["fit-from"]);
if (fitted.length < 2)
  usageError(`--most ${options.most}: wanted two lengths to fit from --fit-from ${options["fit-from"]} on`);
/** Number of steps by tokens. The fastest counts, since other load can only slow a step down. */
const stepsOf = (tokens) => (tokens <= 2048 ? 5 : tokens <= 8192 ? 3 : 2);

/** Milliseconds of attention and of all other ops in the fastest step, and the peak memory without weights. */
async function measureStep(device, decoder, tokens) {
  const adapter = makeAdapter({ method: "ladder" }, decoder, "small");
  const trainer = new Trainer(decoder, adapter, { learningRate: () => 1e-4 });
  const { vocabSize } = decoder.config;
  const inputIds = Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % vocabSize);
  const batch = { inputIds, labels: inputIds, attentionMask: null, batchSize: 1, length: tokens };
  const spent = { attention: 0, rest: 0 };
  const { run } = device;
  device.run = function timed(op, ...args) {
    const from = performance.now();
    const outputs = run.call(device, op, ...args);
    const name = op.name ?? op;
    spent[name.startsWith("attention") ? "attention" : "rest"] += performance.now() - from;
    return outputs;
  };
  const best = { attention: Infinity, rest: Infinity };
  const resting = device.memory.liveBytes;
  device.memory.resetPeak();
  try {
    for (let step = 0; step <= stepsOf(tokens); step++) {
      spent.attention = 0;
      spent.rest = 0;
      await trainer.step(batch);
      if (step === 0) continue; // warm-up: buffers are allocated
      for (const part of ["attention", "rest"]) best[part] = Math.min(best[part], spent[part]);
    }
    return { ...best, stepBytes: device.memory.peak().peakBytes - resting };
  } finally {
    device.run = run;
    trainer.dispose();
    adapter.dispose();
  }
}

/** Peak bytes of attention's forward and backward ops beside q, k and v. A T x T matrix would show here. */
function attentionBytes({ numAttentionHeads, numKeyValueHeads, headDim }, tokens) {
  const meta = new MetaDevice();
  const of = (heads) => meta.empty([1, tokens, heads, headDim]);
  const [q, k, v] = [of(numAttentionHeads), of(numKeyValueHeads), of(numKeyValueHeads)];
  const resting = meta.memory.liveBytes;
  meta.memory.resetPeak();
  meta.scope(() => {
    const { y, lse } = meta.run("attention", [q, k, v], {}, ["lse"]);
    meta.run("attentionBackwardQ", [y, q, k, v, y, lse], {});
    meta.run("attentionBackwardKV", [y, q, k, v, y, lse], {});
  });
  return meta.memory.peak().peakBytes - resting;
}

/** The slope of log y over log x by least squares. */
function exponent(rows, key) {
  const points = rows.map((row) => [Math.log(row.tokens), Math.log(row[key])]);
  const mean = (i) => points.reduce((sum, point) => sum + point[i], 0) / points.length;
  const [mx, my] = [mean(0), mean(1)];
  const along = points.reduce((sum, [x, y]) => sum + (x - mx) * (y - my), 0);
  return along / points.reduce((sum, [x]) => sum + (x - mx) ** 2, 0);
}

const device = await openNodeWasm({ threads: options.threads });
const decoder = await randomDecoder(device, "small", { quantize: false, dtype: "f32" });
const rows = [];
for (const tokens of lengths) {
  const row = {
    tokens,
    ...(await measureStep(device, decoder, tokens)),
    attentionBytes: attentionBytes(decoder.config, tokens),
  };
  rows.push(row);
  console.error(
    `${tokens} tokens: attention ${row.attention.toFixed(1)} ms, all else ${row.rest.toFixed(1)} ms`,
  );
}
const fittedRows = rows.filter(({ tokens }) => fitted.includes(tokens));
const exponents = Object.fromEntries(
  ["attention", "rest", "stepBytes", "attentionBytes"].map((key) => [key, exponent(fittedRows, key)]),
);
const mib = (bytes) => (bytes / 2 ** 20).toFixed(2);
console.log(
  "| tokens | attention, ms | all other ops, ms | step beside weights, MiB | attention's own, MiB |",
);
console.log("| --- | --- | --- | --- | --- |");
for (const { tokens, attention, rest, stepBytes, attentionBytes: own } of rows) {
  console.log(
    `| ${tokens} | ${attention.toFixed(1)} | ${rest.toFixed(1)} | ${mib(stepBytes)} | ${mib(own)} |`,
  );
}
const shown = ["attention", "rest", "stepBytes", "attentionBytes"].map((key) => exponents[key].toFixed(2));
console.log(
  `| **exponent from ${fitted[0].toLocaleString("en")} on** | ${shown.map((text) => `**${text}**`).join(" | ")} |`,
);
const result = { device: device.label, date: new Date().toISOString().slice(0, 10), rows, exponents };
if (options.svg) writeFileSync(options.svg, renderGrowth(result));
if (options.json) writeFileSync(options.json, JSON.stringify(result));
device.dispose();
process.exit(0);
