// The kernels that decide a training step, timed at the extents of real models.
//
//   node bench/gpu/kernels.mjs [--device webgpu] [--models qwen2.5-7b] [--tokens 256,2048] [--only linear,attention]

import { parseArgs } from "node:util";
import { runSuite } from "@sidenet/ladder";
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

const { values: options } = parseArgs({
  options: {
    device: { type: "string", default: "webgpu" },
    models: { type: "string", default: "qwen2.5-7b" },
    tokens: { type: "string", default: "2048" },
    dtypes: { type: "string", default: "f32,f16" },
    time: { type: "string", default: "60" },
    only: { type: "string", default: HOT.join(",") },
    "skip-check": { type: "boolean", default: false },
  },
});
const list = (text) => text.split(",").filter((part) => part !== "");

const device = await open(options.device, { precision: "f16" });
const report = await runSuite(device, {
  models: list(options.models),
  tokens: list(options.tokens).map(Number),
  dtypes: list(options.dtypes),
  only: list(options.only).map((op) => `${op} `),
  timeMs: Number(options.time),
  check: !options["skip-check"],
  onResult: (result) => {
    if ("error" in result) console.error(`${result.name}: ${result.error}`);
    else {
      const time = (result.gpuMs ?? result.wall.medianMs).toFixed(3);
      const rates = `${result.gflops.toFixed(0)} GFLOP/s ${result.gigabytesPerSecond.toFixed(1)} GB/s`;
      console.error(
        `${result.name.padEnd(48)} ${time} ms (wall ${result.wall.medianMs.toFixed(3)})  ${rates}`,
      );
    }
  },
});
const { copyGigabytesPerSecond, multiplyAddGflops } = report.ceilings;
console.error(
  `ceilings: copy ${copyGigabytesPerSecond.toFixed(1)} GB/s, multiply-add ${multiplyAddGflops.toFixed(0)} GFLOP/s`,
);
finish(report, report.failures.length > 0 ? 1 : 0);
