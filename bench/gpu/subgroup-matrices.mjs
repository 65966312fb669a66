// Finds out where the time of matmul on subgroup matrices goes: times the kernel, variants of it, and the kernel without one of
// its stages, alternating.
//
//   node bench/gpu/subgroup-matrices.mjs [--rounds 5] [--m 2048] [--n 4608] [--k 3584]
//
// Prints TFLOP/s of the whole matmul, and nanoseconds per 32 of k of a block of 128 x 128: of a single block, and per block if
// all cores work. Their ratio is the number of blocks that run at a time. If it equals the number of cores, each core runs one
// block at a time and waits for its loads.

import { readFileSync } from "node:fs";
import { WebGpuDevice } from "@sidenet/tensor";
import { scriptOptions } from "../../scripts/lib/options.mjs";
import { finish, open } from "./process.mjs";
import { subgroupMatrixVariants } from "./subgroup-matrix-variants.mjs";

const options = scriptOptions({ device: "webgpu", rounds: 5, m: 2048, n: 4608, k: 3584 });
const { m, n, k } = options;
const BLOCK = 128;
const DEPTH = 32;
const CALLS = 10;

const device = await open(options.device, { precision: "f16" });
if (!(device instanceof WebGpuDevice && device.profile.subgroupMatrices)) {
  console.error(`${device.label} has no subgroup matrices: nothing is timed.`);
  finish({ variants: [] });
  await new Promise(() => {}); // the process ends when the result is written
}

function randomF16(shape, seed) {
  const made = device.scope(() => {
    const values = device.empty(shape);
    device.ops.normal(values, { seed, stream: 0 });
    return device.ops.cast(values, { to: "f16" });
  });
  return device.keep(made);
}

const y = device.empty([m, n]);
const none = device.empty([4]);
const bind = { a: randomF16([m, k], 1), b: randomF16([n, k], 2), y, scales: none, bias: none };
const strides = { aAt: 0, aRow: k, yAt: 0, yRow: n };
const whole = { m, n, k, ...strides, accumulate: 0, hasBias: 0, hasScales: 0, splits: 1, splitDepth: k };
const alone = { ...whole, m: BLOCK, n: BLOCK };
const blocks = Math.ceil(m / BLOCK) * Math.ceil(n / BLOCK);
const timed = device.gpu.features.has("timestamp-query");

/** Milliseconds of a dispatch, by timestamps if the adapter has them. */
async function time(id, params, grid) {
  if (timed) device.startProfile();
  const from = performance.now();
  for (let i = 0; i < CALLS; i++) device.dispatch(`${id}/main`, { bind, params, grid });
  if (timed) return (await device.stopProfile()).reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / CALLS;
  await device.synchronize();
  return (performance.now() - from) / CALLS;
}

/** Compiles a variant and compares its result with `want`, the first one's; null if the adapter cannot run it. */
async function prepare({ name, isWhole, text }, i, want) {
  const id = `subgroup-matrices-${i}`;
  try {
    device.addKernel(id, text);
    await time(id, whole, blocks);
  } catch (error) {
    console.error(`${name}: ${error.message}`); // such as: too little workgroup memory
    return null;
  }
  const got = await y.read();
  want ??= got;
  const largest = (values) => values.reduce((max, value) => Math.max(max, Math.abs(value)), 0);
  const difference = largest(got.map((value, j) => value - want[j])) / largest(want);
  return { row: { id, name, isWhole, difference, wholeMs: Infinity, aloneMs: Infinity }, got };
}

const rows = [];
let want = null;
const text = readFileSync(new URL("../../kernels/matmul-matrix.wgsl", import.meta.url), "utf8");
for (const [i, variant] of subgroupMatrixVariants(text).entries()) {
  const prepared = await prepare(variant, i, want);
  if (prepared === null) continue;
  want ??= prepared.got;
  rows.push(prepared.row);
}
for (let round = 0; round < options.rounds; round++) {
  for (const row of rows) {
    row.wholeMs = Math.min(row.wholeMs, await time(row.id, whole, blocks));
    row.aloneMs = Math.min(row.aloneMs, await time(row.id, alone, 1));
  }
}
const steps = k / DEPTH;
for (const row of rows) {
  row.tflops = (2 * m * n * k) / row.wholeMs / 1e9;
  row.aloneNs = (1e6 * row.aloneMs) / steps;
  row.sharedNs = (1e6 * row.wholeMs) / steps / blocks;
  console.error(
    `${row.name.padEnd(42)} ${row.wholeMs.toFixed(3)} ms ${row.tflops.toFixed(1).padStart(6)} TFLOP/s  ` +
      `32 of k: a block alone ${row.aloneNs.toFixed(0)} ns, of all cores ${row.sharedNs.toFixed(2)} ns a block`,
  );
}
const wrong = rows.filter(({ isWhole, difference }) => isWhole && !(difference < 1e-3));
for (const { name, difference } of wrong) console.error(`FAILED ${name}: differs by ${difference}`);
finish({ m, n, k, variants: rows }, wrong.length > 0 ? 1 : 0);
