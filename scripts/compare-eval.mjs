// Compares `sidenet eval` with EleutherAI's lm-evaluation-harness, row by row: log-likelihoods of answers and of texts, which
// answers are right, and generated texts; and the metrics over them.
//
//   npm run build && node scripts/compare-eval.mjs [--arc FILE] [--boolq FILE] [--blimp FILE] [--critic FILE] [--gsm8k FILE]
//                                                  [--perplexity FILE] [--limit 100] [--model PATH] [--device auto]
//                                                  [--python FILE] [--keep DIR]
//
// A task is compared over the first rows of its JSONL file (docs/guide-evaluate.md has the fields), perplexity by default over
// texts in examples/data. compare-eval.py writes prompts and answers out by itself. The model (default: SmolLM2-135M-Instruct in
// Q4_1) is converted to float32. --python is a Python with torch, transformers, accelerate and lm_eval; without it, a temporary
// virtual environment is made (gigabytes). With --keep, the files stay in that folder. Exits with 1 if anything differs by more
// than is allowed. Not part of CI. docs/results.md has its output.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { openModel } from "@sidenet/ladder/node";
import { fetchModel } from "./fetch-model.mjs";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions, usageError } from "./lib/options.mjs";
import { compareWithPython } from "./lib/python.mjs";
import { sidenet } from "./lib/sidenet.mjs";
import { requireSuccess, run } from "./lib/steps.mjs";

const PYTHON_HALF = join(ROOT, "scripts/compare-eval.py");
const PACKAGES = ["torch", "transformers", "accelerate", "lm_eval"];

/** Allowed difference of a log-likelihood, relative to its size or to 1. Both programs compute in float32. */
const ALLOWED = 5e-5;
/** Tokens that a window predicts, and windows of a text. All are full: the harness moves the beginning of one that is not back. */
const WINDOW = 32;
const WINDOWS = 3;
const ANSWER_TOKENS = 128;
/** Stands before the questions of arc. */
const PREFIX = "Question: What falls from clouds?\nAnswer: rain\n\n";

const TASKS = {
  arc: null,
  boolq: null,
  blimp: null,
  critic: null,
  gsm8k: null,
  perplexity: join(ROOT, "examples/data/shakespeare-sample.jsonl"),
};
const options = scriptOptions(
  { ...TASKS, limit: 100, model: null, device: "auto", python: null, keep: null },
  { positive: ["limit"] },
);
const tasks = Object.keys(TASKS).filter((task) => options[task] !== undefined);
const missing = tasks.find((task) => !existsSync(options[task]));
if (missing !== undefined) usageError(`--${missing} ${options[missing]}: there is no such file`);

const CHOICE = {
  metrics: { accuracy: "acc", accuracy_normalized: "acc_bytes" },
  rowsOf: (lines) =>
    lines.map(({ label, chosen, chosen_normalized, log_likelihoods }) => ({
      responses: log_likelihoods,
      right: { acc: chosen === label, acc_bytes: chosen_normalized === label },
    })),
};

/** One row for each text, of the predictions of its windows. */
function textRows(windows) {
  const nats = new Map();
  for (const { source, nats: own } of windows) nats.set(source, (nats.get(source) ?? 0) + own);
  return [...nats.values()].map((sum) => ({ responses: [-sum], right: {} }));
}

/**
 * What is compared, by name. `task`: the one that it is part of, if it has another name. `metrics`: the harness's names of ours.
 * `rowsOf`: what lines of the predictions say, of which `right` has the harness's names.
 */
const CHECKS = {
  arc: CHOICE,
  boolq: CHOICE,
  blimp: CHOICE,
  critic: {
    metrics: { accuracy: "acc" },
    rowsOf: (lines) =>
      lines.map(({ label, chosen, log_likelihoods }) => ({
        responses: log_likelihoods,
        right: { acc: chosen === label },
      })),
  },
  first_wrong_step: {
    task: "critic",
    metrics: { first_wrong_step: "acc" },
    rowsOf: (lines) =>
      lines
        .filter(({ first_error_step: step }) => step !== null)
        .map(({ first_error_step: step, chosen_step }) => ({ right: { acc: chosen_step === step } })),
  },
  gsm8k: {
    metrics: { exact_match: "exact_match" },
    rowsOf: (lines) =>
      lines.map(({ text, found, final }) => ({ responses: [text], right: { exact_match: found === final } })),
  },
  perplexity: { metrics: { bits_per_byte: "bits_per_byte" }, rowsOf: textRows },
};

/** What `eval` is told beside a task. Its windows contain the last token that they predict. */
const flagsOf = (work) => ({
  arc: ["--prefix", join(work, "prefix.txt")],
  gsm8k: ["--answer-tokens", ANSWER_TOKENS],
  perplexity: ["--context", WINDOW + 1, "--stride", WINDOW],
});

/**
 * The first rows of a file, as lines. The harness's texts begin with BOS, which is not scored, so texts are given one where the
 * tokenizer adds none, and end where their last window is full.
 */
async function linesOf(task, model) {
  const lines = readFileSync(options[task], "utf8").trim().split("\n");
  if (task !== "perplexity") return lines.slice(0, options.limit);
  const files = await openModel(model);
  const tokenizer = await files.tokenizer();
  await files.close();
  const start = tokenizer.encode("").length > 0 ? "" : tokenizer.decode([tokenizer.bosId]);
  const plain = { addSpecialTokens: false };
  return lines
    .map((line) => tokenizer.encode(JSON.parse(line).text, plain).slice(0, WINDOW * WINDOWS))
    .map((ids) => tokenizer.decode(ids))
    .filter((text) => tokenizer.encode(text, plain).length === WINDOW * WINDOWS)
    .slice(0, options.limit)
    .map((text) => JSON.stringify({ text: start + text }));
}

/** What `eval` says of a task: its metrics, and a line of predictions for each row or window. */
function evaluateHere(task, model, work) {
  const predictions = join(work, `${task}.predictions.jsonl`);
  const given = { task, model, data: join(work, `${task}.jsonl`), predictions, device: options.device };
  const args = Object.entries(given).flatMap(([name, value]) => [`--${name}`, value]);
  const done = sidenet(["eval", ...args, ...(flagsOf(work)[task] ?? []), "--quiet"].map(String));
  const { before, device } = requireSuccess(done, `sidenet eval --task ${task} failed.`).result;
  const lines = readFileSync(predictions, "utf8").trim().split("\n");
  return { metrics: before, device, lines: lines.map((line) => JSON.parse(line).before) };
}

const difference = (ours, theirs) => Math.abs(ours - theirs) / Math.max(1, Math.abs(theirs));

/** The largest difference of numbers, and how many texts, or answers that are right, are not the same. */
function compareRows(ours, theirs) {
  let largest = 0;
  let others = 0;
  if (ours.length !== theirs.length)
    throw new Error(`${ours.length} rows, and ${theirs.length} of the harness`);
  for (const [i, { responses = [], right }] of ours.entries()) {
    for (const [r, own] of responses.entries()) {
      const other = theirs[i].responses[r];
      if (typeof own === "string") others += own === other ? 0 : 1;
      else largest = Math.max(largest, difference(own, other));
    }
    for (const [name, own] of Object.entries(right))
      others += Number(own) === theirs[i].metrics[`${name},none`] ? 0 : 1;
  }
  return { largest, others };
}

const WIDTHS = [18, 6, 9, 8, 24, 26, 26];
const rowOf = (cells) =>
  cells
    .map((cell, i) => `${cell}`.padEnd(WIDTHS[i]))
    .join("")
    .trimEnd();
const interval = (value, low, high) =>
  `${value.toFixed(4)}${low === null ? "" : ` [${low.toFixed(4)}, ${high.toFixed(4)}]`}`;

/** Prints a check's lines of the table, one for each metric, and returns whether all is the same. */
function report(name, { metrics, rowsOf }, here, theirs) {
  const rows = rowsOf(here.lines);
  const { largest, others } = compareRows(rows, theirs.rows);
  let isSame = largest <= ALLOWED && others === 0;
  const lines = Object.entries(metrics).map(([metric, other]) => {
    const { value, low, high } = here.metrics[metric];
    const mean = theirs.metrics[`${other},none`];
    const error = theirs.metrics[`${other}_stderr,none`];
    if (!(difference(value, mean) <= ALLOWED)) isSame = false;
    const spread = typeof error === "number" ? [mean - 1.96 * error, mean + 1.96 * error] : [null, null];
    return [metric, interval(value, low, high), interval(mean, ...spread)];
  });
  for (const [i, line] of lines.entries()) {
    const first = i === 0 ? [name, rows.length, largest.toExponential(1), others] : ["", "", "", ""];
    console.log(rowOf([...first, ...line]) + (isSame ? "" : "  FAILED"));
  }
  return isSame;
}

async function toFloat32(work) {
  const folder = join(work, "model");
  const from = options.model ?? (await fetchModel());
  const done = sidenet(["convert", "--model", from, "--output", folder, "--dtype", "f32", "--overwrite"]);
  requireSuccess(done, "sidenet convert failed.");
  return folder;
}

async function compareAll(python, work) {
  const model = await toFloat32(work);
  writeFileSync(join(work, "prefix.txt"), PREFIX);
  const here = {};
  for (const task of tasks) {
    writeFileSync(join(work, `${task}.jsonl`), `${(await linesOf(task, model)).join("\n")}\n`);
    here[task] = evaluateHere(task, model, work);
  }
  const manifest = join(work, "manifest.json");
  const settings = {
    model,
    tasks,
    window: WINDOW,
    answer_tokens: ANSWER_TOKENS,
    prefix: PREFIX,
  };
  writeFileSync(manifest, JSON.stringify(settings));
  requireSuccess(run(python, [PYTHON_HALF, manifest]), "compare-eval.py failed.");
  const { versions, results } = JSON.parse(readFileSync(join(work, "results.json"), "utf8"));

  console.log(`${Object.entries(versions).flat().join(" ")}; sidenet on ${here[tasks[0]].device}`);
  console.log(rowOf(["task", "rows", "log p", "others", "metric", "sidenet", "harness"]));
  const checks = Object.entries(CHECKS).filter(([name]) => results[name]);
  const differ = checks.filter(
    ([name, check]) => !report(name, check, here[check.task ?? name], results[name]),
  );
  console.log(
    `${checks.length - differ.length} of ${checks.length} agree (log p within ${ALLOWED}, the rest equal)`,
  );
  return differ.length;
}

await compareWithPython(options, PACKAGES, compareAll);
