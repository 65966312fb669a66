// Tests whether a change makes anything slower than its base commit. Both are built, and processes over each alternate on a
// short list of rows (bench/regress/rows.mjs). A row counts as slower if the median of its ratios over several pairs of
// processes exceeds the threshold (bench/regress/judge.mjs). Exits with 1 if a row is slower.
//
//   npm run bench:regress -- [--base REF] [--devices webgpu,wasm] [--threshold 0.15] [--only linear,add] [--rounds 3]
//        [--seconds 120] [--force] [--json FILE]
//
// The base is --base, else HEAD if there are uncommitted changes, else the commit where HEAD left main, else on main HEAD's
// parent. If there is no such commit, or no difference in code that is measured, it says so and measures nothing; --force
// measures without a difference too. Of --seconds, builds not counted, each device has its part; after it no further row is
// begun, and the rest is listed.

import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { checkNames, scriptOptions } from "../scripts/lib/options.mjs";
import { SetupError } from "../scripts/lib/steps.mjs";
import { differs, findBase, makeBaseTree } from "./regress/base-tree.mjs";
import { judge } from "./regress/judge.mjs";
import { median } from "./shared.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const WORKER = fileURLToPath(new URL("regress/worker.mjs", import.meta.url));
/** Pairs of processes in which each row is measured, and in which one that seems slower is. */
const PAIRS = [3, 25];

const options = scriptOptions(
  {
    base: null,
    devices: ["webgpu", "wasm"],
    threshold: 0.15,
    only: [],
    rounds: 3,
    seconds: 120,
    force: false,
    json: null,
  },
  { positive: ["rounds", "seconds"] },
);
checkNames("devices", options.devices, ["webgpu", "wasm"]);

/** Starts a worker process over a checkout, which answers one question at a time. */
async function startWorker(root, device) {
  const child = spawn(process.execPath, [WORKER, root, device], { stdio: ["pipe", "pipe", "pipe"] });
  let errors = "";
  child.stderr.on("data", (chunk) => {
    errors = `${errors}${chunk}`.slice(-2000);
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new SetupError(`The process over ${root} ended.`, errors.trim().split("\n").at(-1));
    return JSON.parse(value);
  };
  const ended = new Promise((resolve) => child.once("exit", resolve));
  const ask = async (question) => {
    child.stdin.write(`${JSON.stringify(question)}\n`);
    return next();
  };
  const close = async () => {
    child.stdin.end();
    await ended;
  };
  return { about: await next(), ask, close };
}

/** Starts a worker over each checkout, the base first or last; `sample` returns the milliseconds of a row on one side. */
async function openPair(roots, device, baseFirst) {
  const workers = {};
  for (const side of baseFirst ? ["base", "change"] : ["change", "base"]) {
    workers[side] = await startWorker(roots[side], device);
  }
  const sample = async (side, row) => {
    const { ms, error } = await workers[side].ask({ row });
    if (error !== undefined) throw Object.assign(new Error(error), { side });
    return ms;
  };
  const close = async () => {
    await workers.base.close();
    await workers.change.close();
  };
  return { about: workers.change.about, sample, close };
}

const shownRow = ({ row, ratios, slower, absent, failed }) => {
  const text = (ratio) => ratio.toFixed(2);
  const spread = `${text(Math.min(...ratios))} to ${text(Math.max(...ratios))} in ${ratios.length} pairs`;
  const why = absent === undefined ? "not measured: out of time" : `new: the base says ${absent}`;
  const shown = ratios.length === 0 ? "-" : `${text(median(ratios))} (${spread})`;
  const verdict = slower ? "SLOWER" : failed ? `FAILED: ${failed}` : ratios.length === 0 ? why : "";
  return `  ${row.padEnd(26)} ${shown.padEnd(32)} ${verdict}`.trimEnd();
};

async function compareOn(device, roots) {
  const { only } = options;
  const first = await openPair(roots, device, true);
  const { device: label, rows: all } = first.about;
  checkNames("only", only, all);
  const open = (i) => (i === 0 ? first : openPair(roots, device, i % 2 === 0));
  const rows = await judge(only.length > 0 ? all.filter((row) => only.includes(row)) : all, open, {
    threshold: options.threshold,
    rounds: options.rounds,
    pairs: PAIRS,
    deadline: performance.now() + (1000 * options.seconds) / options.devices.length,
    note: (text) => console.log(`${device}: ${text}`),
  });
  console.log([`\n${device}: ${label}`, ...rows.map(shownRow)].join("\n"));
  return { device, label, rows };
}

async function main() {
  const base = findBase(ROOT, options.base ?? null);
  if (base.skip) return console.log(`bench:regress skipped: ${base.skip}`);
  const { commit } = base;
  if (!options.force && !differs(ROOT, commit)) {
    return console.log(`bench:regress skipped: no code that is measured differs from ${commit.slice(0, 9)}`);
  }
  const started = performance.now();
  const made = makeBaseTree(ROOT, commit);
  if (made.skip) return console.log(`bench:regress skipped: ${made.skip}`);
  process.once("exit", made.remove);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  const roots = { base: made.tree, change: ROOT };
  const reports = [];
  for (const device of options.devices) reports.push(await compareOn(device, roots));
  const all = reports.flatMap(({ device, rows }) =>
    rows.filter(({ slower, failed }) => slower || failed).map(({ row }) => `${device} ${row}`),
  );
  const seconds = Math.round((performance.now() - started) / 1000);
  const verdict = all.length === 0 ? "nothing is slower" : `slower or failed: ${all.join(", ")}`;
  console.log(
    `\nagainst ${commit.slice(0, 9)}, change / base, threshold ${options.threshold}, ${seconds} s: ${verdict}`,
  );
  if (options.json)
    writeFileSync(options.json, JSON.stringify({ commit, date: new Date().toISOString(), reports }));
  if (all.length > 0) process.exitCode = 1;
}

await main();
