// Compares the perplexity of one model in several file formats with each other and with llama.cpp's: an independent check of
// the readers, of conversion and of the decoder on running text.
//
//   npm run build && node scripts/compare-perplexity.mjs [--model PATH] [--data FILE.jsonl] [--tokens 20000] [--window 512]
//                                                        [--device auto|webgpu|wasm|cpu] [--keep DIR] [--without-llama]
//                                                        [--calibrate FILE.jsonl]... [--calibration-tokens 8192]
//
// The model (default: SmolLM2-135M-Instruct in Q4_1) is converted to safetensors F16, GGUF F16 and bitsandbytes NF4. The text
// is the data's records (default: the books in examples/data) joined by blank lines. Its first tokens are cut into windows, in each of which every token but the
// first is scored. With --calibrate, NF4 is also written calibrated on those files, which must be other text. With --keep, the
// files and the score of each window stay in that folder, and the same command resumes an interrupted run. Exits with 1 if
// the F16 files differ from each other or from llama.cpp by more than 0.5 %, or if calibrated NF4 costs 10 % or more; what
// rounding to the nearest costs is not a fault.

import { existsSync } from "node:fs";
import { appendFile, readFile } from "node:fs/promises";
import { join } from "node:path";
import { Decoder, evaluateLoss, loadWeights } from "@sidenet/ladder";
import { convertModel, openModel, readRecords } from "@sidenet/ladder/node";
import { CpuDevice } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { fetchModel } from "./fetch-model.mjs";
import { ROOT } from "./lib/environment.mjs";
import { llamaNats, withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions, usageError } from "./lib/options.mjs";
import { withFolder } from "./lib/work-folder.mjs";

const MAX_F16_DIFFERENCE = 0.005;
const MAX_NF4_COST = 0.1;

const values = scriptOptions(
  {
    model: null,
    data: join(ROOT, "examples/data/books-sample.jsonl"),
    tokens: 20_000,
    window: 512,
    device: "auto",
    keep: null,
    "without-llama": false,
    calibrate: { type: "string", multiple: true, default: [] },
    "calibration-tokens": 8192,
  },
  { positive: ["tokens", "calibration-tokens"] },
);
const { tokens, window } = values;
if (window < 2 || tokens < window)
  usageError(
    `--tokens ${tokens} --window ${window}: wanted windows of 2 tokens or more, and tokens for one at least`,
  );

/** The text, and its token ids in windows of equal length, without the tokens that fill no window. */
async function windowsOf(model) {
  const files = await openModel(model);
  const tokenizer = await files.tokenizer();
  await files.close();
  const texts = [];
  for await (const { record } of readRecords(values.data)) texts.push(record.text);
  const text = texts.join("\n\n");
  const ids = tokenizer.encode(text, { addSpecialTokens: false }).slice(0, tokens);
  return {
    text,
    windows: Array.from({ length: Math.floor(ids.length / window) }, (_, i) =>
      ids.slice(i * window, (i + 1) * window),
    ),
  };
}

/** The file of scores that earlier runs kept: one JSON object per file and window. */
const scoresFile = values.keep && join(values.keep, `scores-${window}.jsonl`);

async function knownScores() {
  if (!scoresFile || !existsSync(scoresFile)) return new Map();
  const lines = (await readFile(scoresFile, "utf8")).trim().split("\n");
  return new Map(lines.map((line) => JSON.parse(line)).map(({ path, i, nats }) => [`${path} ${i}`, nats]));
}

/** Mean -log p in nats of a file's model, by sidenet. */
async function ourNats(device, path, windows) {
  const known = await knownScores();
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

/** The same by llama.cpp. Throws if it splits the text into other tokens. */
const theirNats = (path, text, windows) =>
  withLlamaModel(path, {}, async (model) => {
    const own = model.tokenize(text, false).slice(0, windows.length * window);
    if (windows.flat().some((id, i) => id !== own[i]))
      throw new Error("llama.cpp splits the text into other tokens");
    let nats = 0;
    for (const [i, ids] of windows.entries()) {
      for (const token of await llamaNats(model, ids)) nats += token;
      process.stderr.write(`\rllama.cpp: window ${i + 1} of ${windows.length} `);
    }
    process.stderr.write("\n");
    return nats / (windows.length * (window - 1));
  });

/** Converts the model. Files that an earlier run kept are not written again. */
async function convert(device, model, output, type, calibration = null) {
  if (existsSync(output)) return;
  const options = { model, output, type, calibration, adapter: null, maxShardBytes: 5e9, overwrite: false };
  await convertModel(calibration ? device : new CpuDevice(), options);
}

async function main(device, folder) {
  const model = values.model ?? (await fetchModel());
  const [safetensors, gguf, nf4, calibrated] = ["f16", "f16.gguf", "nf4", "nf4-calibrated"].map((name) =>
    join(folder, name),
  );
  await convert(device, model, safetensors, "f16");
  await convert(device, model, gguf, "f16");
  await convert(device, model, nf4, "nf4");
  const calibration = { data: values.calibrate, tokens: values["calibration-tokens"] };
  const calibrates = values.calibrate.length > 0;
  if (calibrates) await convert(device, model, calibrated, "nf4", calibration);

  const { text, windows } = await windowsOf(gguf);
  console.log(
    `${windows.length} windows of ${window} tokens, ${windows.length * (window - 1)} scored; device ${device.kind}, ${device.label}`,
  );
  let first = null;
  const show = (name, nats) => {
    const perplexity = Math.exp(nats);
    first ??= perplexity;
    const percent = (100 * (perplexity / first - 1)).toFixed(3);
    console.log(`${name.padEnd(36)} ${perplexity.toFixed(4)}  ${percent} %`);
    return perplexity;
  };
  const ours = async (name, path) => show(name, await ourNats(device, path, windows));
  const f16 = values["without-llama"]
    ? []
    : [show("GGUF F16, llama.cpp", await theirNats(gguf, text, windows))];
  f16.push(await ours("GGUF F16, sidenet", gguf), await ours("safetensors F16, sidenet", safetensors));
  let quantized = await ours("safetensors NF4, sidenet", nf4);
  if (calibrates) quantized = await ours("safetensors NF4 calibrated, sidenet", calibrated);

  const difference = Math.max(...f16) / Math.min(...f16) - 1;
  const cost = quantized / f16.at(-1) - 1;
  const nf4Text = calibrates ? "calibrated NF4 costs" : "NF4 rounded to the nearest costs";
  console.log(
    `the F16 figures differ by ${(100 * difference).toFixed(3)} % at most (allowed 0.5), ` +
      `${nf4Text} ${(100 * cost).toFixed(2)} %${calibrates ? " (allowed below 10)" : ""}`,
  );
  return difference <= MAX_F16_DIFFERENCE && (!calibrates || cost < MAX_NF4_COST);
}

const { device } = await openDevice(values.device);
const passed = await withFolder(values.keep, (folder) => main(device, folder));
device.dispose();
releaseDawn();
process.exit(passed ? 0 : 1);
