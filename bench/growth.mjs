// How time and memory of a training step grow with its tokens, from 256 to 16k: a table for docs/benchmarks.md, a plot, and
// the exponents that fit.
//
//   npm run build && node bench/growth.mjs [--threads 2] [--most 16384] [--svg docs/images/growth.svg] [--json FILE]
//
// One row of tokens; a Ladder on a small model with random weights (bench/gpu/models.mjs, "small"), on wasm, where an op is
// done when it returns, so that each has its own time. Memory is the account's, and of attention alone what its ops hold
// beside q, k and v (on meta: no data).

import { writeFileSync } from "node:fs";
import { makeAdapter, Trainer } from "@sidenet/ladder";
import { MetaDevice } from "@sidenet/tensor";
import { openNodeWasm } from "@sidenet/tensor/node";
import { scriptOptions } from "../scripts/lib/options.mjs";
import { randomDecoder } from "./gpu/models.mjs";
import { renderGrowth } from "./growth-plot.mjs";

const options = scriptOptions({ threads: 2, most: 16_384, svg: null, json: null });
const LEAST = 256;
/** Steps of which the fastest counts, by tokens: other load can only add. */
const stepsOf = (tokens) => (tokens <= 2048 ? 5 : tokens <= 8192 ? 3 : 2);

/** Milliseconds of attention and of all other ops in the fastest step of this many tokens, and the peak beside weights. */
async function measureStep(device, decoder, tokens) {
  const adapter = makeAdapter({ method: "ladder" }, decoder, "small");
  const trainer = new Trainer(decoder, adapter, { learningRate: () => 1e-4 });
  const { vocabSize } = decoder.config;
  const inputIds = Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % vocabSize);
  const batch = { inputIds, labels: inputIds, attentionMask: null, batchSize: 1, length: tokens };
  const spent = { attention: 0, rest: 0 };
  const { run } = device;
  device.run = function timed(name, ...args) {
    const from = performance.now();
    const outputs = run.call(device, name, ...args);
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
      if (step === 0) continue; // memory grows, buffers are made
      for (const part of ["attention", "rest"]) best[part] = Math.min(best[part], spent[part]);
    }
    return { ...best, stepBytes: device.memory.peak().peakBytes - resting };
  } finally {
    device.run = run;
    trainer.dispose?.();
    adapter[Symbol.dispose]();
  }
}

/** Bytes that attention's forward and backward ops hold at most, beside q, k and v: a T x T matrix would show here. */
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
for (let tokens = LEAST; tokens <= options.most; tokens *= 2) {
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
// Short contexts are mostly what does not grow.
const fitted = rows.filter(({ tokens }) => tokens >= 1024);
const exponents = Object.fromEntries(
  ["attention", "rest", "stepBytes", "attentionBytes"].map((key) => [key, exponent(fitted, key)]),
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
console.log(`| **exponent from 1,024 on** | ${shown.map((text) => `**${text}**`).join(" | ")} |`);
const result = { device: device.label, date: new Date().toISOString().slice(0, 10), rows, exponents };
if (options.svg) writeFileSync(options.svg, renderGrowth(result));
if (options.json) writeFileSync(options.json, JSON.stringify(result));
device.dispose();
process.exit(0);
