// Times the kernels on which a training step spends its time, at the extents of real models.
//
//   node bench/gpu/kernels.mjs [--device webgpu] [--models qwen2.5-7b] [--tokens 256,2048] [--only linear,attention] [--rounds 2]
//
// All rows are timed, then all of them again in further rounds. If others use the GPU too, they can slow all calls of a row
// alike, which only later rounds show. The fastest time of a row counts; `scatter` is its slowest time divided by the fastest.
// Do not trust a rate with a scatter of 1.3 or more.

import { BENCH_MODELS, runSuite } from "@sidenet/ladder";
import { opNames } from "@sidenet/tensor";
import { checkNames, scriptOptions } from "../../scripts/lib/options.mjs";
import { finish, open } from "./process.mjs";

const HOT = [
  "linear",
  "matmul",
  "nf4Linear",
  "attention",
  "rmsNorm",
  "rope",
  "siluMul",
  "lmHeadLoss",
  "add",
  "adamw",
  "transpose",
  "softmax",
];

const options = scriptOptions(
  {
    device: "webgpu",
    models: ["qwen2.5-7b"],
    tokens: [2048],
    dtypes: ["f32", "f16"],
    time: 60,
    only: HOT,
    rounds: 2,
    "skip-check": false,
  },
  { positive: ["tokens", "time", "rounds"] },
);
checkNames("models", options.models, Object.keys(BENCH_MODELS));
checkNames("dtypes", options.dtypes, ["f32", "f16"]);
checkNames("only", options.only, opNames);

const device = await open(options.device, { precision: "f16" });
const timeOf = ({ gpuMs, wall }) => gpuMs || wall.medianMs;

function print(result, note = "") {
  const rates = `${result.gflops.toFixed(0)} GFLOP/s ${result.gigabytesPerSecond.toFixed(1)} GB/s`;
  const times = `${timeOf(result).toFixed(3)} ms (wall ${result.wall.medianMs.toFixed(3)})`;
  console.error(`${result.name.padEnd(48)} ${times}  ${rates}${note}`);
}

const runs = [];
for (let round = 0; round < options.rounds; round++) {
  const run = await runSuite(device, {
    models: options.models,
    tokens: options.tokens,
    dtypes: options.dtypes,
    only: options.only.map((op) => `${op} `),
    timeMs: options.time,
    check: round === 0 && !options["skip-check"],
    onResult: (result) =>
      "error" in result ? console.error(`${result.name}: ${result.error}`) : print(result),
  });
  runs.push(run);
}

const [first] = runs;
const results = first.results.map(({ name }) => {
  const rows = runs.flatMap((run) => run.results.filter((row) => row.name === name));
  const times = rows.map(timeOf);
  const least = rows[times.indexOf(Math.min(...times))];
  return { ...least, scatter: Math.max(...times) / timeOf(least) };
});
console.error(`\nleast of ${runs.length} rounds:`);
for (const row of results) print(row, `  scatter ${row.scatter.toFixed(2)}`);
const { copyGigabytesPerSecond, multiplyAddGflops } = first.ceilings;
console.error(
  `ceilings: copy ${copyGigabytesPerSecond.toFixed(1)} GB/s, multiply-add ${multiplyAddGflops.toFixed(0)} GFLOP/s`,
);
finish({ ...first, results }, first.failures.length > 0 ? 1 : 0);
