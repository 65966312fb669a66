// Tests and measures a GPU in one run of a few minutes: correctness, speed and memory.
//
//   npm run build && node bench/gpu-run.mjs [--quick] [--golden DIR] [--output DIR] [--only check-f32,kernels] [--skip memory]
//
// Each part is a process with a time limit, so a lost device or a hang ends only that part. Prints a summary and writes
// `gpu-run.json` (all results) and `gpu-run.log` (all output) to --output, else $OUT, else out/gpu-run. --only and --skip take
// names of parts or their beginnings, and name all of them when they are given another; --quick uses small sizes, to see that the
// scripts run.

import { spawn, spawnSync } from "node:child_process";
import { appendFileSync, existsSync, mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { ensureRuntimeFolder } from "../scripts/lib/environment.mjs";
import { checkNames, scriptOptions } from "../scripts/lib/options.mjs";
import { lastJson, SIDENET } from "../scripts/lib/sidenet.mjs";

const options = scriptOptions({
  device: "webgpu",
  golden: "golden",
  output: process.env.OUT ?? "out/gpu-run",
  only: [],
  skip: [],
  quick: false,
});

const file = (path) => fileURLToPath(new URL(path, import.meta.url));
const { device, golden, quick } = options;

const script = (name, ...args) => [file(`gpu/${name}.mjs`), "--device", device, ...args];
const command = (...args) => [SIDENET, ...args, "--device", device, "--json"];
const step = (...args) => script("step", "--profile", ...args);
const small = ["--model", quick ? "tiny" : "smollm2-135m", "--context", quick ? "64" : "512", "--batch"];
const large = ["--model", quick ? "tiny" : "qwen2.5-7b", "--context", quick ? "128" : "2048"];
const heads = quick
  ? ["--heads", "2,1,64", "--tokens", "64"]
  : ["--heads", "28,4,128", "--tokens", "512,2048"];
const several = ["--steps", quick ? "1" : "12"]; // until V8 has compiled what the host computes
const few = ["--steps", quick ? "1" : "2"];
const cases = ["--cases", quick ? "2" : "40"];
const kernels = quick
  ? ["--models", "smollm2-135m", "--tokens", "32", "--time", "10", "--only", "linear,rmsNorm,attention"]
  : [];

/** Ops whose f32 operands the kernels for subgroup matrices round to f16. */
const ROUNDED_TO_F16 = [
  "attention",
  "attentionBackwardQ",
  "attentionBackwardKV",
  "nf4Linear",
  "nf4LinearBackwardX",
];

/**
 * The parts: name, time limit in seconds, and Node's arguments. Parts that time nothing run together, before the others;
 * `needs` is a folder without which a part is skipped.
 */
const PARTS = [
  { name: "doctor", limit: 60, args: command("doctor"), together: true },
  {
    name: "check-f32",
    limit: 150,
    args: command("check", golden, "--dtype", "f32"),
    together: true,
    needs: golden,
  },
  {
    name: "check-f16",
    limit: 150,
    args: command("check", golden, "--dtype", "f16"),
    together: true,
    needs: golden,
  },
  {
    name: "properties-f32",
    limit: 150,
    args: script("properties", "--dtype", "f32", ...cases),
    together: true,
  },
  {
    name: "properties-f16",
    limit: 150,
    args: script("properties", "--dtype", "f16", ...cases),
    together: true,
  },
  {
    name: "properties-f32-as-f16",
    limit: 150,
    args: script("properties", "--precision", "f16", ...cases, "--only", ROUNDED_TO_F16.join(",")),
    together: true,
  },
  { name: "step-ladder", limit: 60, args: step(...small, "4", ...several, "--method", "ladder") },
  { name: "step-qlora", limit: 60, args: step(...small, "4", ...several, "--method", "qlora") },
  { name: "memory-ladder", limit: 90, args: step(...large, ...few, "--method", "ladder") },
  { name: "memory-qlora", limit: 90, args: step(...large, ...few, "--method", "qlora") },
  { name: "kernels", limit: 150, args: script("kernels", ...kernels) },
  {
    name: "attention",
    limit: 60,
    args: [file("attention.mjs"), "--device", device, ...heads, "--rounds", "5"],
  },
  { name: "choices", limit: 90, args: script("choices", ...(quick ? ["--quick"] : [])) },
  {
    name: "host-cost",
    limit: 60,
    args: [file("host-cost.mjs"), "--device", device, "--rounds", quick ? "1" : "15"],
  },
];

const isMeant = (wanted, name) => name.startsWith(wanted);
for (const option of ["only", "skip"]) {
  const names = PARTS.map(({ name }) => name);
  checkNames(option, options[option], names, isMeant);
}
ensureRuntimeFolder();
mkdirSync(options.output, { recursive: true });
const logFile = join(options.output, "gpu-run.log");
writeFileSync(logFile, "");

const matches = (name, names) => names.some((wanted) => isMeant(wanted, name));

/** Runs one part, and returns how it ended and the object that it printed last. */
function runPart({ name, limit, args }) {
  return new Promise((resolve) => {
    const started = performance.now();
    const child = spawn(process.execPath, args, { stdio: ["ignore", "pipe", "pipe"] });
    let out = "";
    let err = "";
    let timedOut = false;
    child.stdout.on("data", (data) => {
      out += data;
    });
    child.stderr.on("data", (data) => {
      err += data;
    });
    const timer = setTimeout(() => {
      timedOut = true;
      child.kill("SIGKILL");
    }, limit * 1000);
    child.on("close", (code, signal) => {
      clearTimeout(timer);
      const seconds = (performance.now() - started) / 1000;
      const status = timedOut ? "timed out" : code === 0 ? "ok" : `failed (${signal ?? code})`;
      appendFileSync(
        logFile,
        `\n==== ${name}: ${status}, ${seconds.toFixed(1)} s\n${err}${out.slice(-4000)}`,
      );
      console.log(`\n---- ${name}: ${status}, ${seconds.toFixed(1)} s`);
      const result = lastJson(out);
      const text = result ? err : err + out; // some scripts print no object
      const lines = text.split("\n").filter((line) => line !== "" && !line.startsWith("Warning: max"));
      console.log(lines.slice(args[0].endsWith("kernels.mjs") ? -80 : -18).join("\n"));
      resolve({ name, status, seconds, result });
    });
  });
}

const chosen = PARTS.filter(({ name, needs }) => {
  if (options.only.length > 0 && !matches(name, options.only)) return false;
  if (matches(name, options.skip)) return false;
  if (needs && !existsSync(needs)) {
    console.log(`${name} skipped: there is no folder ${needs} (--golden)`);
    return false;
  }
  return true;
});
const query = ["--query-gpu=name,driver_version,memory.total,memory.used", "--format=csv,noheader"];
const smi = spawnSync("nvidia-smi", query, { encoding: "utf8" });
const results = [];

/** Runs a part and saves all results so far, so that a run that is cut off leaves them. */
async function runAndSave(part) {
  results.push(await runPart(part));
  const run = {
    date: new Date().toISOString(),
    node: process.version,
    nvidiaSmi: smi.stdout ?? null,
    results,
  };
  writeFileSync(join(options.output, "gpu-run.json"), JSON.stringify(run));
}
await Promise.all(chosen.filter(({ together }) => together).map(runAndSave));
for (const part of chosen.filter(({ together }) => !together)) await runAndSave(part);

console.log("\n==== summary");
for (const { name, status, seconds, result } of results) {
  const counts = result?.passed === undefined ? "" : `, ${result.passed} passed`;
  const failed = Array.isArray(result?.failures) ? result.failures.length : result?.failed;
  const speed = result?.seconds_per_step
    ? `, ${result.seconds_per_step.toFixed(3)} s a step, ${result.tokens_per_second.toFixed(0)} tokens/s, ` +
      `peak ${(result.peak_bytes / 2 ** 20).toFixed(0)} MiB` +
      (result.driver_peak_mib === null ? "" : `, driver ${result.driver_peak_mib} MiB`)
    : "";
  console.log(
    `${name.padEnd(16)} ${status}, ${seconds.toFixed(0)} s${counts}${failed === undefined ? "" : `, ${failed} failed`}${speed}`,
  );
}
process.exit(results.every(({ status }) => status === "ok") ? 0 : 1);
