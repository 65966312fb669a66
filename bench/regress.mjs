// Is a change slower than what it is based on? Both are built, run in processes side by side and take turns on a short list of
// rows (bench/regress/rows.mjs); a row counts as slower when its median ratio is past the threshold, and again twice in new
// processes. Exit code 1 then.
//
//   npm run bench:regress -- [--base REF] [--devices webgpu,wasm] [--threshold 0.15] [--only linear,add] [--rounds 9]
//        [--force] [--json FILE]
//
// Without --base: where HEAD left main, or HEAD's parent on main, or HEAD beside uncommitted changes. Where there is no such
// commit, and where nothing that runs differs, it says so and measures nothing (--force: measures all the same).

import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { differs, findBase, makeBaseTree } from "./regress/base-tree.mjs";
import { judge } from "./regress/judge.mjs";

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const WORKER = fileURLToPath(new URL("regress/worker.mjs", import.meta.url));
/** Rounds of the measurements that confirm a suspicion. */
const CONFIRMATIONS = [15, 25];

const { values: options } = parseArgs({
  options: {
    base: { type: "string" },
    devices: { type: "string", default: "webgpu,wasm" },
    threshold: { type: "string", default: "0.15" },
    only: { type: "string", default: "" },
    rounds: { type: "string", default: "9" },
    force: { type: "boolean", default: false },
    json: { type: "string" },
  },
});

/** A worker that answers one question at a time. */
async function startWorker(root, device) {
  const child = spawn(process.execPath, [WORKER, root, device], { stdio: ["pipe", "pipe", "pipe"] });
  let said = "";
  child.stderr.on("data", (chunk) => {
    said = `${said}${chunk}`.slice(-2000);
  });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const next = async () => {
    const { value, done } = await lines.next();
    if (done) throw new Error(`the process over ${root} ended: ${said.trim().split("\n").at(-1)}`);
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

/** Two workers, and what they take for a row. */
async function openPair(roots, device) {
  const [base, change] = [await startWorker(roots.base, device), await startWorker(roots.change, device)];
  const workers = { base, change };
  const sample = async (side, row) => {
    const { ms, error } = await workers[side].ask({ row });
    if (error !== undefined) throw Object.assign(new Error(error), { side });
    return ms;
  };
  const close = async () => {
    await base.close();
    await change.close();
  };
  return { about: change.about, sample, close };
}

/** Rows that both sides can run; what the change alone cannot run any more has failed. */
async function usableRows(roots, device) {
  const only = options.only.split(",").filter(Boolean);
  const { about, sample, close } = await openPair(roots, device);
  const [usable, failed] = [[], []];
  try {
    for (const row of about.rows) {
      if (only.length > 0 && !only.includes(row)) continue;
      try {
        await sample("base", row);
        await sample("change", row);
        usable.push(row);
      } catch (error) {
        if (error.side === "change") failed.push({ row, error: error.message });
        else console.log(`${device} ${row}: not on the base: ${error.message}`);
      }
    }
  } finally {
    await close();
  }
  return { label: about.device, usable, failed };
}

async function compareOn(device, roots) {
  const { label, usable, failed } = await usableRows(roots, device);
  const note = (text) => console.log(`${device}: ${text}`);
  const rows = await judge(usable, () => openPair(roots, device), {
    threshold: Number(options.threshold),
    rounds: Number(options.rounds),
    confirmations: CONFIRMATIONS,
    note,
  });
  console.log(`\n${device}: ${label}`);
  for (const { row, ratios, slower } of rows) {
    const shown = ratios.map((ratio) => ratio.toFixed(2)).join(" ");
    console.log(`  ${row.padEnd(22)} ${shown.padEnd(16)} ${slower ? "SLOWER" : ""}`);
  }
  for (const { row, error } of failed) console.log(`  ${row.padEnd(22)} FAILED: ${error}`);
  return { device, label, rows, failed };
}

async function main() {
  const base = findBase(ROOT, options.base ?? null);
  if (base.skip) return console.log(`bench:regress skipped: ${base.skip}`);
  const { commit } = base;
  if (!options.force && !differs(ROOT, commit)) {
    return console.log(`bench:regress skipped: nothing that runs differs from ${commit.slice(0, 9)}`);
  }
  const started = performance.now();
  const made = makeBaseTree(ROOT, commit);
  if (made.skip) return console.log(`bench:regress skipped: ${made.skip}`);
  process.once("exit", made.remove);
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));
  const roots = { base: made.tree, change: ROOT };
  const reports = [];
  for (const device of options.devices.split(",")) reports.push(await compareOn(device, roots));
  const all = reports.flatMap(({ device, rows, failed }) => [
    ...rows.filter(({ slower }) => slower).map(({ row }) => `${device} ${row}`),
    ...failed.map(({ row }) => `${device} ${row}`),
  ]);
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
