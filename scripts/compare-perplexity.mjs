// Perplexity of one model in several files, and llama.cpp's own for the same GGUF file: an independent check of the
// readers, of conversion and of the decoder on running text.
//   node scripts/compare-perplexity.mjs [--model PATH] [--data FILE.jsonl] [--tokens 20000] [--window 512]
//                                       [--device auto|webgpu|wasm|cpu] [--keep DIR] [--without-llama]
//                                       [--calibrate FILE.jsonl]... [--calibration-tokens 8192]
//
// The model (default: the demo's, whose Q4_1 weights then count as the F16 model) is converted to safetensors F16, GGUF F16
// and bitsandbytes NF4. The text is the data's records joined by blank lines; its first tokens are cut into windows, and in
// each window every token but the first is scored. With --calibrate NF4 is written twice, the second time calibrated on those
// files, which have to be other text. With --keep the files stay, and the score of each window too, so that a run that was
// cut off goes on. Fails when the F16 files differ by more than 0.5 % among each other or from llama.cpp, or when NF4 (the
// calibrated one, where there is one) costs 10 % or more.

import { existsSync } from "node:fs";
import { appendFile, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Decoder, evaluateLoss, loadWeights } from "@sidenet/ladder";
import { convertModel, openModel } from "@sidenet/ladder/node";
import { CpuDevice } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { fetchModel } from "./fetch-model.mjs";
import { llamaNats, withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");
const MOST_F16_DIFFERENCE = 0.005;
const MOST_NF4_COST = 0.1;

const values = scriptOptions({
  model: null,
  data: join(ROOT, "../shared/data/text/wikitext2.valid.jsonl"),
  tokens: 20_000,
  window: 512,
  device: "auto",
  keep: null,
  "without-llama": false,
  calibrate: { type: "string", multiple: true, default: [] },
  "calibration-tokens": 8192,
});
const { tokens, window } = values;

/** Token ids of the text, in windows of equal length; a rest that fills none is left out. */
async function windowsOf(model) {
  const files = await openModel(model);
  const tokenizer = await files.tokenizer();
  await files.close();
  const lines = (await readFile(values.data, "utf8")).split("\n").filter((line) => line.trim() !== "");
  const text = lines.map((line) => JSON.parse(line).text).join("\n\n");
  const ids = tokenizer.encode(text, { addSpecialTokens: false }).slice(0, tokens);
  return {
    text,
    windows: Array.from({ length: Math.floor(ids.length / window) }, (_, i) =>
      ids.slice(i * window, (i + 1) * window),
    ),
  };
}

/** Scores of windows that earlier runs kept, by file and window: one JSON object a line. */
const scoresFile = values.keep && join(values.keep, `scores-${window}.jsonl`);

async function knownScores() {
  if (!scoresFile || !existsSync(scoresFile)) return new Map();
  const lines = (await readFile(scoresFile, "utf8")).trim().split("\n");
  return new Map(lines.map((line) => JSON.parse(line)).map(({ path, i, nats }) => [`${path} ${i}`, nats]));
}

/** Mean negative log-likelihood in nats of a file, by sidenet. */
async function ourNats(device, path, windows) {
  const known = await knownScores();
  const isKnown = windows.every((_, i) => known.has(`${path} ${i}`));
  if (isKnown) return windows.reduce((sum, _, i) => sum + known.get(`${path} ${i}`), 0) / windows.length;
  const files = await openModel(path);
  const weights = await loadWeights(device, files.config, files.checkpoint);
  await files.close();
  const decoder = new Decoder(files.config, weights);
  try {
    let sum = 0;
    for (const [i, ids] of windows.entries()) {
      let nats = known.get(`${path} ${i}`);
      if (nats === undefined) {
        const batch = { inputIds: ids, labels: ids, attentionMask: null, batchSize: 1, length: ids.length };
        nats = await evaluateLoss(decoder, null, [batch]);
        if (scoresFile) await appendFile(scoresFile, `${JSON.stringify({ path, i, nats })}\n`);
      }
      sum += nats;
      process.stderr.write(`\r${path}: window ${i + 1} of ${windows.length} `);
    }
    process.stderr.write("\n");
    return sum / windows.length;
  } finally {
    decoder.dispose();
  }
}

/** The same by llama.cpp, which has to cut the text into the same tokens. */
const theirNats = (path, text, windows) =>
  withLlamaModel(path, {}, async (model) => {
    const own = model.tokenize(text, false).slice(0, windows.length * window);
    if (windows.flat().some((id, i) => id !== own[i]))
      throw new Error("llama.cpp cuts the text into other tokens");
    let nats = 0;
    for (const [i, ids] of windows.entries()) {
      for (const token of await llamaNats(model, ids)) nats += token;
      process.stderr.write(`\rllama.cpp: window ${i + 1} of ${windows.length} `);
    }
    process.stderr.write("\n");
    return nats / (windows.length * (window - 1));
  });

const model = values.model ?? (await fetchModel());
const folder = values.keep ?? (await mkdtemp(join(tmpdir(), "sidenet-perplexity-")));
const outputs = {
  safetensors: join(folder, "f16"),
  gguf: join(folder, "f16.gguf"),
  nf4: join(folder, "nf4"),
  ...(values.calibrate.length > 0 ? { calibrated: join(folder, "nf4-calibrated") } : {}),
};
const { device } = await openDevice(values.device);
let failed = false;
try {
  for (const [kind, output] of Object.entries(outputs)) {
    if (existsSync(output)) continue; // kept from an earlier run
    const type = kind === "nf4" || kind === "calibrated" ? "nf4" : "f16";
    const calibration =
      kind === "calibrated" ? { data: values.calibrate, tokens: values["calibration-tokens"] } : null;
    await convertModel(calibration ? device : new CpuDevice(), {
      model,
      output,
      type,
      adapter: null,
      maxShardBytes: 5e9,
      overwrite: false,
      calibration,
    });
  }
  const { text, windows } = await windowsOf(outputs.gguf);
  const rows = [];
  const add = (name, nats) => {
    const perplexity = Math.exp(nats);
    const base = rows[0]?.perplexity ?? perplexity;
    rows.push({ name, perplexity });
    console.log(
      `${name.padEnd(36)} ${perplexity.toFixed(4)}  ${(100 * (perplexity / base - 1)).toFixed(3)} %`,
    );
    return perplexity;
  };
  console.log(
    `${windows.length} windows of ${window} tokens, ${windows.length * (window - 1)} scored; device ${device.kind}, ${device.label}`,
  );
  const theirs = values["without-llama"]
    ? []
    : [add("GGUF F16, llama.cpp", await theirNats(outputs.gguf, text, windows))];
  const gguf = add("GGUF F16, sidenet", await ourNats(device, outputs.gguf, windows));
  const plain = add("safetensors F16, sidenet", await ourNats(device, outputs.safetensors, windows));
  let nf4 = add("safetensors NF4, sidenet", await ourNats(device, outputs.nf4, windows));
  if (outputs.calibrated)
    nf4 = add("safetensors NF4 calibrated, sidenet", await ourNats(device, outputs.calibrated, windows));
  const full = [...theirs, gguf, plain];
  const apart = Math.max(...full) / Math.min(...full) - 1;
  failed = apart > MOST_F16_DIFFERENCE || nf4 / plain - 1 >= MOST_NF4_COST;
  console.log(
    `the F16 figures differ by ${(100 * apart).toFixed(3)} % at most (allowed 0.5), NF4 costs ${(100 * (nf4 / plain - 1)).toFixed(2)} % (allowed below 10)`,
  );
} finally {
  device.dispose();
  releaseDawn();
  if (values.keep === undefined) await rm(folder, { recursive: true, force: true });
}
process.exit(failed ? 1 : 0);
