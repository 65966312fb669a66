// Compares whole training runs with Hugging Face transformers, PEFT and PyTorch's AdamW in float64: random models of every
// family, trained by `sidenet train` and by compare-training.py from the same data, batches and initial adapter.
//
//   npm run build && node scripts/compare-training.mjs [--device wasm] [--python FILE] [--only TEXT] [--keep DIR]
//
// Python encodes the records by itself; only their order is sidenet's. Its side networks are decoders of transformers that read
// another's hidden states. --python is a Python with torch, transformers, peft and safetensors; without it, a temporary virtual
// environment is made (gigabytes). With --keep, the files stay in that folder. Not part of CI. docs/results.md has its output.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { BatchStream, encodeRecord, inMemory, parseRecord } from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions, usageError } from "./lib/options.mjs";
import { compareWithPython } from "./lib/python.mjs";
import { TEXT_MODELS, writeTextModel } from "./lib/random-models.mjs";
import { sidenet } from "./lib/sidenet.mjs";
import { requireSuccess, run } from "./lib/steps.mjs";

const PYTHON_HALF = join(ROOT, "scripts/compare-training.py");
const PACKAGES = ["torch", "transformers", "peft", "safetensors"];

const options = scriptOptions({ device: "wasm", python: null, only: "", keep: null });

/**
 * Allowed differences: relative, of the adapter that of what training has added to it (2-norm over all of it), of generated
 * tokens that of their logit from the largest. AdamW moves a value whose gradient is near 0 by a whole step in a direction that
 * rounding decides: one such value in ten thousand is a difference of about 1e-2.
 */
const ALLOWED = {
  loss: 2e-5,
  "gradient norm": 3e-4,
  "learning rate": 1e-12,
  adapter: 1e-2,
  "held out, before": 2e-5,
  "held out, after": 2e-5,
  "greedy logit": 1e-3,
};

const STEPS = 12;
const WARMUP = 3;
const BATCH = 3;
const HELD_OUT = 5;
const SEED = 3;
const RECORDS = 36;
const PROMPTS = ["KING:\nWhat is", "Question: How many"];
const NEW_TOKENS = 16;

const PREFIX = "Question: How many legs do two dogs have?\nAnswer: 4 + 4 = 8\n\n";

/**
 * Training runs by title. `stream`: how batches are made. `quantized`: the model's linear weights are in NF4. `prefix`: a text
 * that stands before every record and prompt.
 */
const RUNS = {
  lora: { flags: ["--method", "lora", "--rank", 4], lr: 5e-3, accumulation: 2 },
  qlora: { flags: ["--method", "qlora", "--rslora"], lr: 2e-3, stream: { packLength: 192 }, quantized: true },
  full: { flags: ["--method", "full"], lr: 1e-3, stream: { bucketByLength: true } },
  ladder: { flags: ["--method", "ladder", "--reduction", 4, "--quantize", "none"], lr: 5e-3 },
  xladder: {
    flags: ["--method", "xladder", "--reduction", 4, "--fusion", "gate", "--initial-rung"],
    lr: 5e-3,
    quantized: true,
  },
  prefix: { flags: ["--method", "ladder", "--reduction", 4, "--quantize", "none"], lr: 5e-3, prefix: PREFIX },
};

/** Plain texts, and prompts with completions, that fit the models' contexts. */
function writeData(path) {
  const linesOf = (name) =>
    readFileSync(join(ROOT, "examples/data", name), "utf8")
      .trim()
      .split("\n");
  const pairs = linesOf("gsm8k-sample.jsonl").filter((line) => line.length < 500);
  const texts = linesOf("shakespeare-sample.jsonl").filter((line) => line.length < 400);
  const lines = Array.from({ length: RECORDS }, (_, i) => (i % 3 === 0 ? pairs[i] : texts[i]));
  writeFileSync(path, `${lines.join("\n")}\n`);
  return lines;
}

/** Indices of the records of each step's batches, a list for each batch. */
async function batchesOf(model, lines, { stream = {}, accumulation = 1 }) {
  const files = await openModel(model);
  const tokenizer = await files.tokenizer();
  await files.close();
  const encoding = { bosId: null, eosId: tokenizer.eosIds[0], maxLength: 256, cut: false };
  const records = lines
    .slice(0, RECORDS - HELD_OUT)
    .map((line, i) => encodeRecord(parseRecord(JSON.parse(line), ""), `${i}`, tokenizer, encoding));
  const own = { batchSize: BATCH, seed: SEED, maxLength: encoding.maxLength };
  const batches = new BatchStream(inMemory(records), { ...own, ...stream });
  const next = async () => (await batches.next()).sources.flatMap((source) => source.split("; ")).map(Number);
  const steps = [];
  for (let step = 0; step < STEPS; step++) {
    steps.push([]);
    while (steps[step].length < accumulation) steps[step].push(await next());
  }
  return steps;
}

function train(model, data, output, { flags, stream = {}, accumulation = 1, prefix }, steps, lr) {
  if (prefix) writeFileSync(`${data}.prefix`, prefix);
  const given = {
    model,
    data,
    output,
    steps,
    "learning-rate": lr,
    "warmup-steps": Math.min(WARMUP, steps),
    "batch-size": BATCH,
    "gradient-accumulation": accumulation,
    "held-out": HELD_OUT,
    seed: SEED,
    dtype: "f32",
    "optimizer-state": "f32",
    "sample-tokens": 0,
    device: options.device,
    ...(stream.packLength && { "pack-length": stream.packLength }),
    ...(prefix && { prefix: `${data}.prefix` }),
  };
  const args = Object.entries(given).flatMap(([name, value]) => [`--${name}`, value]);
  if (stream.bucketByLength) args.push("--bucket-by-length");
  const done = sidenet(["train", ...args, ...flags, "--overwrite", "--quiet"].map(String));
  return requireSuccess(done, `sidenet train failed (${output}).`).result;
}

/** Continuations after training: with the adapter, or of the exported model where all weights were trained. */
function greedyIds(model, adapter, title) {
  let asked = ["--model", model, "--adapter", adapter];
  if (title === "full") {
    const written = ["--output", `${adapter}-exported`, "--dtype", "f32", "--overwrite"];
    const exported = sidenet(["export", ...asked, ...written]);
    requireSuccess(exported, `sidenet export failed (${adapter}).`);
    asked = ["--model", `${adapter}-exported`];
  }
  const prompts = PROMPTS.flatMap((prompt) => ["--prompt", prompt]);
  const own = ["--max-tokens", `${NEW_TOKENS}`, "--device", options.device];
  const done = sidenet(["generate", ...asked, ...own, ...prompts]);
  return requireSuccess(done, `sidenet generate failed (${adapter}).`).result.results.map(({ ids }) => ids);
}

/** A model in NF4, and the same for Python with its weights dequantized: bitsandbytes computes in 16 bits on a CPU. */
function quantize(model) {
  const convert = (from, to, dtype) => {
    const done = sidenet(["convert", "--model", from, "--output", to, "--dtype", dtype, "--overwrite"]);
    requireSuccess(done, `sidenet convert to ${dtype} failed.`);
  };
  const [nf4, dequantized] = [`${model}-nf4`, `${model}-dequantized`];
  convert(model, nf4, "nf4");
  convert(nf4, dequantized, "f32");
  return { model: nf4, theirs: dequantized };
}

/** Trains here, and returns what Python needs to train the same. */
async function trainHere(name, title, { model, theirs }, { data, lines }) {
  const settings = RUNS[title];
  const output = `${model}-${title}`;
  const summary = train(model, data, output, settings, STEPS, settings.lr);
  const metrics = readFileSync(join(output, "metrics.jsonl"), "utf8").trim().split("\n").map(JSON.parse);
  // An untrained adapter is written by no command; a step at this rate leaves values as they are, and zeros within 1e-30.
  const initial = title === "full" ? null : `${output}-initial`;
  if (initial) train(model, data, initial, settings, 1, 1e-30);
  return {
    name: `${name}, ${title}`,
    title,
    model: theirs,
    data,
    initial,
    output,
    lr: settings.lr,
    warmup: WARMUP,
    held_out: HELD_OUT,
    prompts: PROMPTS,
    new_tokens: NEW_TOKENS,
    prefix: settings.prefix ?? "",
    steps: await batchesOf(model, lines, settings),
    ours: { metrics, summary, ids: greedyIds(model, output, title) },
  };
}

const relative = (ours, theirs) => Math.abs(ours - theirs) / Math.abs(theirs);
const largest = (ours, theirs) => Math.max(...theirs.map((value, i) => relative(ours[i], value)));

function differencesOf({ ours: { metrics, summary } }, theirs) {
  const column = (name) => metrics.map((line) => line[name]);
  return {
    loss: largest(column("loss"), theirs.loss),
    "gradient norm": largest(column("grad_norm"), theirs.grad_norm),
    "learning rate": largest(column("learning_rate"), theirs.learning_rate),
    adapter: theirs.adapter_difference,
    "held out, before": relative(summary.initial_eval_loss, theirs.eval_before),
    "held out, after": relative(summary.eval_loss, theirs.eval_after),
    "greedy logit": theirs.gap,
  };
}

const NAMES = Object.keys(ALLOWED);
const show = (value) => (Number.isInteger(value) ? `${value}` : value.toExponential(1));
const rowOf = (title, cells) =>
  title.padEnd(30) + cells.map((cell, i) => cell.padStart(NAMES[i].length + 2)).join("");

/** Prints the table, and returns the number of runs that differ by more than is allowed. */
function report(cases, { versions, results }) {
  console.log(Object.entries(versions).flat().join(" "));
  console.log(rowOf(`largest differences`, NAMES));
  const worst = NAMES.map(() => 0);
  let failed = 0;
  for (const item of cases) {
    const differences = Object.values(differencesOf(item, results[item.name]));
    const isBad = differences.some((value, i) => !(value <= ALLOWED[NAMES[i]]));
    if (isBad) failed++;
    for (const [i, value] of differences.entries()) worst[i] = Math.max(worst[i], value);
    const { eval_before: before, eval_after: after } = results[item.name];
    const learned = `${before.toFixed(3)} -> ${after.toFixed(3)}`;
    console.log(`${rowOf(item.name, differences.map(show))}  ${learned}${isBad ? "  FAILED" : ""}`);
  }
  console.log(rowOf("all", worst.map(show)));
  console.log(rowOf("allowed", Object.values(ALLOWED).map(show)));
  console.log(`${cases.length - failed} of ${cases.length} runs agree`);
  return failed;
}

const isChosen = (name, title) => `${name}, ${title}`.includes(options.only);
if (!Object.keys(TEXT_MODELS).some((name) => Object.keys(RUNS).some((title) => isChosen(name, title))))
  usageError(`--only ${options.only}: no run has this in its name, such as "qwen3, qlora"`);

async function compareAll(python, work) {
  const data = join(work, "train.jsonl");
  const lines = writeData(data);
  const cases = [];
  for (const name of Object.keys(TEXT_MODELS)) {
    const titles = Object.keys(RUNS).filter((title) => isChosen(name, title));
    if (titles.length === 0) continue;
    const model = writeTextModel(work, name);
    const plain = { model, theirs: model };
    const quantized = titles.some((title) => RUNS[title].quantized) ? quantize(model) : null;
    for (const title of titles) {
      const which = RUNS[title].quantized ? quantized : plain;
      cases.push(await trainHere(name, title, which, { data, lines }));
    }
  }
  const manifest = join(work, "manifest.json");
  writeFileSync(manifest, JSON.stringify({ cases }));
  requireSuccess(run(python, [PYTHON_HALF, manifest]), "compare-training.py failed.");
  return report(cases, JSON.parse(readFileSync(join(work, "results.json"), "utf8")));
}

await compareWithPython(options, PACKAGES, compareAll);
