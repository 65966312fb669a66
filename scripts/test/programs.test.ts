// The programs of bench/ and scripts/ run at their smallest sizes and print what they say: structure and finite numbers, no times.
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { lastJson } from "../lib/sidenet.mjs";
import { temporaryFolder } from "../test-folder.ts";

const ROOT = resolve(import.meta.dirname, "../..");
const gpu = process.env.SIDENET_DEVICE !== "cpu";

const node = (...args: string[]) => spawnSync(process.execPath, args, { cwd: ROOT, encoding: "utf8" });

const folder = temporaryFolder();
const file = (name: string) => join(folder, name);
const read = (name: string) => readFileSync(file(name), "utf8");

beforeAll(() => {
  // As the heads of the programs say: `npm run build` first. (The kernels are embedded already.)
  const built = node("node_modules/typescript/bin/tsc", "-b", "tsconfig.build.json");
  expect(built.status, built.stdout).toBe(0);
  const choices = Array.from({ length: 12 }, (_, i) => ({
    question: `Is ${i} even?`,
    choices: ["no", "yes"],
    label: (i + 1) % 2,
  }));
  writeFileSync(file("choices.jsonl"), choices.map((record) => `${JSON.stringify(record)}\n`).join(""));
  const variants = [
    { name: "LoRA", lr: 1e-3, method: { method: "lora" } },
    { name: "Ladder", lr: 1e-2, sideNorm: 16, method: { method: "ladder" } },
  ];
  writeFileSync(file("variants.json"), JSON.stringify(variants));
  const assertions = ["passed", "passed", "failed"].map((status) => ({ status }));
  const testResults = [{ status: "failed", assertionResults: assertions }];
  writeFileSync(file("report.json"), JSON.stringify({ testResults }));
}, 300_000); // the first build of a clone, on a busy machine

const TINY = ["--model", "tiny-books", "--device", "wasm"];
const matches = (text: string, pattern: RegExp) => [...text.matchAll(pattern)].map(([, ...groups]) => groups);

/** Every number is finite, and none is printed as something else. */
function expectNumbers(text: string): void {
  expect(text).not.toMatch(/NaN|Infinity|undefined|null/);
}

interface Run {
  args: readonly string[];
  exit?: number;
  /** Checks the standard output and the files that were written. */
  check(out: string): void;
}

const RUNS: Readonly<Record<string, Run>> = {
  "bench/growth.mjs": {
    args: [
      ...["--most", "512", "--fit-from", "256", "--json", file("growth.json"), "--svg", file("growth.svg")],
    ],
    check(out) {
      expect(matches(out, /^\| (\d+) (?:\| [\d.]+ ){4}\|$/gm)).toEqual([["256"], ["512"]]);
      expect(out).toMatch(/^\| \*\*exponent from 256 on\*\* (\| \*\*-?[\d.]+\*\* ){4}\|$/m);
      const { rows, exponents } = JSON.parse(read("growth.json"));
      for (const row of rows) for (const value of Object.values(row)) expect(value).toBeGreaterThan(0);
      expect(exponents.attentionBytes).toBeCloseTo(1, 1); // no T x T matrix
      expect(read("growth.svg")).toMatch(/^<svg [\s\S]*<polyline [\s\S]*<\/svg>\n$/);
      expectNumbers(`${out}${read("growth.json")}${read("growth.svg")}`);
    },
  },
  "bench/methods.mjs": {
    args: [
      ...TINY,
      "--context",
      "16",
      "--batch",
      "1",
      "--rounds",
      "1",
      "--profile",
      "--methods",
      "ladder,qlora",
    ],
    check(out) {
      const { methods } = lastJson(out);
      expect(matches(out, /^(\S+) +\d+ ms +[\d.]+ tokens\/s {2}[\d.]+ times as fast \(by/gm).flat()).toEqual(
        methods.map(({ method }: { method: string }) => method),
      );
      expect(methods).toHaveLength(2);
      for (const { opMs, plannedTimesAsFast } of methods) {
        expect(opMs.attention).toBeGreaterThan(0);
        expect(plannedTimesAsFast).toBeGreaterThan(0.5);
      }
      expectNumbers(out);
    },
  },
  "bench/peers.mjs": {
    args: ["--device", "wasm", "--rounds", "1", "--only", "add,small,dispatch", "--json", file("peers.json")],
    check(out) {
      const rate = /^(.+?) +sidenet [\d.]+ {2}jax-js [\d.]+ (\S+) {2}ratio [\d.]+ \(of the fastest/gm;
      expect(matches(out, rate)).toEqual([
        ["add", "GB/s"],
        ["200 adds of 256 values", "adds/ms"],
        ["one small op", "µs"],
      ]);
      expect(out).toMatch(/^all +[\d.]+ times, geometric mean; least [\d.]+$/m);
      const { report } = JSON.parse(read("peers.json"));
      for (const { problems } of report) expect(problems).toEqual([null, null]); // equal results
    },
  },
  "bench/quality.mjs": {
    args: [
      ...[...TINY, "--variants", file("variants.json"), "--data", "examples/data/shakespeare-sample.jsonl"],
      ...["--steps", "1", "--batch-size", "1", "--held-out", "2", "--max-length", "192"],
    ],
    check(out) {
      const [setup, ...results] = out
        .trim()
        .split("\n")
        .map((line) => JSON.parse(line));
      expect(setup).toMatchObject({ calibrated: false, steps: 1, heldOut: 2 });
      expect(results.map(({ name }) => name)).toEqual(["frozen", "LoRA", "Ladder"]);
      for (const { evalLoss } of results) expect(evalLoss).toBeCloseTo(results[0].evalLoss, 0);
      expectNumbers(out);
    },
  },
  "bench/task-results.mjs": {
    args: [
      ...[
        ...TINY,
        "--train",
        file("choices.jsonl"),
        "--dev",
        file("choices.jsonl"),
        "--output",
        file("task"),
      ],
      ...["--methods", "ladder", "--steps", "1", "--batch-size", "1", "--limit", "2", "--args=--held-out 2"],
    ],
    check(out) {
      const share = String.raw`-?[\d.]+ \[-?[\d.]+, -?[\d.]+\] \| `;
      expect(out).toMatch(
        new RegExp(String.raw`^\| ladder \| (${share}){3}[\d.]+ → [\d.]+ \| \d+ \| \d+ \| \d+ \|$`, "m"),
      );
      expect(Object.keys(JSON.parse(read("task/ladder.json")))).toEqual(["trained", "scored"]);
    },
  },
  // With attention.mjs, host-cost.mjs and those of bench/gpu: they are its parts.
  "bench/gpu-run.mjs": {
    args: [
      ...["--device", "wasm", "--quick", "--output", file("gpu-run")],
      ...["--only", "step-ladder,properties-f32-as,kernels,attention,host-cost"],
    ],
    check(out) {
      const { results } = JSON.parse(read("gpu-run/gpu-run.json"));
      const parts = ["properties-f32-as-f16", "step-ladder", "kernels", "attention", "host-cost"];
      expect(results).toMatchObject(parts.map((name) => ({ name, status: "ok" })));
      const [properties, step, kernels] = results.map(({ result }: { result: object }) => result);
      expect(properties).toMatchObject({ passed: 5, failures: [] });
      expect(step).toMatchObject({ model: "tiny", context: 64, peak_bytes: expect.any(Number) });
      for (const loss of step.loss) expect(loss).toBeCloseTo(Math.log(512), 0);
      expect(kernels.results.length).toBeGreaterThan(5);
      for (const { gflops, wall } of kernels.results)
        expect([gflops, wall.medianMs]).toEqual([expect.closeTo(gflops), expect.closeTo(wall.medianMs)]);
      const rows = matches(out, /^T 64 {2}(.+?) +[\d.]+ ms {2}[\d.]+ GFLOP\/s {2}\d+ %$/gm).flat();
      const gradients = ["attentionBackwardQ", "attentionBackwardKV"];
      expect(rows).toEqual(["linear", "attention", ...gradients, "q·kᵀ alone", "p·v alone"]);
      const costs = matches(out, /^(.+?) +wall [\d.]+ µs .* host (?:[\d.]+ µs|-).* dispatches a call$/gm);
      expect(costs.flat()).toEqual(["add in place (no output)", "add", "rmsNorm", "linear"]);
      expect(out).toMatch(/^step-ladder +ok, .* tokens\/s, peak \d+ MiB/m);
    },
  },
  "scripts/check-memory.mjs": {
    args: TINY,
    check(out) {
      const { peak_bytes, peak_bytes_by_category, passed } = lastJson(out);
      const parts = Object.values<number>(peak_bytes_by_category);
      expect(parts.reduce((a, b) => a + b)).toBe(peak_bytes);
      expect(passed).toBe(true);
    },
  },
  "scripts/test-totals.mjs": {
    args: ["1", file("report.json"), "1"],
    exit: 1,
    check: (out) => expect(out).toBe("2 passed, 2 failed\n"), // the checks count too
  },
};

describe("a program runs, and prints what it says:", () => {
  it.each(Object.entries(RUNS))("%s", (program, { args, exit = 0, check }) => {
    const { status, stdout, stderr } = node(program, ...args);
    expect(status, `${stdout}\n${stderr}`).toBe(exit);
    check(stdout);
  });

  it.skipIf(!gpu)("bench/gpu/choices.mjs", () => {
    const args = ["--quick", "--as-gpu", "--rounds", "1", "--split", "0,64", "--only", "linear"];
    const { status, stdout, stderr } = node("bench/gpu/choices.mjs", ...args);
    expect(status, stderr).toBe(0);
    const { results, failures } = lastJson(stdout);
    expect(failures).toEqual([]);
    expect(results.length).toBeGreaterThan(2);
    for (const { rows } of results)
      for (const { wallMs, difference } of rows) {
        expect(wallMs).toBeGreaterThan(0);
        expect(difference).toBeLessThan(1e-3);
      }
  });

  it("bench/regress/worker.mjs, as bench/regress.mjs asks it", () => {
    const { stdout, stderr } = spawnSync(process.execPath, ["bench/regress/worker.mjs", ROOT, "wasm"], {
      cwd: ROOT,
      encoding: "utf8",
      input: '{"row":"add"}\n{"row":"none"}\n',
    });
    const [about, time, none] = stdout.split("\n").filter(Boolean).map(lastJson);
    expect(about?.rows, stderr).toContain("add");
    expect(time.ms).toBeGreaterThan(0);
    expect(none.error).toMatch(/not a function/);
  });
});

/** Programs that no test of this file runs, and why. */
const ELSEWHERE: Readonly<Record<string, string>> = {
  "bench/attention.mjs": "bench/gpu-run.mjs",
  "bench/host-cost.mjs": "bench/gpu-run.mjs",
  "bench/gpu/kernels.mjs": "bench/gpu-run.mjs",
  "bench/gpu/properties.mjs": "bench/gpu-run.mjs",
  "bench/gpu/step.mjs": "bench/gpu-run.mjs",
  "bench/gpu/choices.mjs": "where there is WebGPU, above",
  "bench/regress.mjs": "builds another commit; its worker above, the rest in bench/test/regress.test.ts",
  "scripts/check-exports.mjs": "npm run check",
  "scripts/check-pack.mjs": "needs a network",
  "scripts/check-peft.mjs": "needs Python",
  "scripts/compare-eval.mjs": "needs Python",
  "scripts/compare-families.mjs": "needs llama.cpp",
  "scripts/compare-llama-cpp.mjs": "needs llama.cpp",
  "scripts/compare-perplexity.mjs": "needs llama.cpp",
  "scripts/compare-tokenizer.mjs": "needs llama.cpp",
  "scripts/compare-training.mjs": "needs Python",
  "scripts/demo.mjs": "scripts/test/demo.test.ts",
  "scripts/fetch-model.mjs": "needs a network",
  "scripts/memory-tables.mjs": "packages/ladder/test/plan-command.test.ts",
  "scripts/ops-table.mjs": "scripts/test/ops-table.test.ts",
  "scripts/random-golden.mjs": "needs Python",
  "scripts/setup.mjs": "runs before every `npm test`",
};

it("every program is run here, or elsewhere", () => {
  const programs = ["bench", "bench/gpu", "scripts"]
    .flatMap((where) => readdirSync(join(ROOT, where)).map((name) => `${where}/${name}`))
    .filter((path) => path.endsWith(".mjs"))
    .filter((path) => /^\/\/ +(npm run|node) /m.test(readFileSync(join(ROOT, path), "utf8")));
  expect(programs.sort()).toEqual([...Object.keys(RUNS), ...Object.keys(ELSEWHERE)].sort());
});
