// Times ops with different settings of the tile table, alternating on the same operands: matmul with and without split-K
// (`splitKBlocks`), attention with and without subgroup matrices (`subgroupMatrixQueries`). docs/kernels.md has predictions.
//
//   node bench/gpu/choices.mjs [--device webgpu] [--split 0,64,128,256,512] [--rounds 5] [--only lmHeadLoss] [--quick] [--as-gpu]
//
// Prints the lowest wall time per call, measured over batches of calls, and the GPU time of its kernels by timestamps. Results
// are compared with those of the first setting, 0. Attention is skipped on adapters without subgroup matrices. --quick uses
// small extents, to see that the script runs; --as-gpu chooses a GPU's kernels on a software driver.

import { BENCH_MODELS } from "@sidenet/ladder";
import { DEFAULT_TILES, NF4_BLOCKS, nf4Table, WebGpuDevice } from "@sidenet/tensor";
import { scriptOptions, usageError } from "../../scripts/lib/options.mjs";
import { finish, open } from "./process.mjs";

const options = scriptOptions(
  {
    device: "webgpu",
    split: [0, 64, 128, 256, 512],
    rounds: 5,
    only: "",
    quick: false,
    "as-gpu": false,
  },
  { positive: ["rounds"] },
);

const [small, large] = options.quick
  ? [
      { d: 64, f: 256, V: 512, heads: 3, keyHeads: 1, c: 64 },
      { d: 64, f: 512, V: 1024, heads: 2, keyHeads: 1, c: 128 },
    ]
  : [BENCH_MODELS["smollm2-135m"], BENCH_MODELS["qwen2.5-7b"]];
const [few, many] = options.quick ? [32, 256] : [256, 2048];
const BATCH_MS = 30;
/** A GPU lowers its clock while it waits for the host, and takes about a quarter of a second of work to raise it. */
const WARM_MS = options.quick ? 0 : 300;
const MAX_CALLS = 200;

const device = await open(options.device, {
  precision: "f16",
  ...(options["as-gpu"] && { adapterClass: "discrete" }),
});
if (!(device instanceof WebGpuDevice))
  usageError(`--device ${options.device}: ${device.label} has no tile table, WebGPU has`);

let stream = 0;
function normals(shape, dtype = "f32") {
  const made = device.scope(() => {
    const values = device.empty(shape);
    device.ops.normal(values, { seed: 1, stream: stream++ });
    return dtype === "f32" ? values : device.ops.cast(values, { to: dtype });
  });
  return device.keep(made);
}

function nf4(out, inner) {
  const blocks = Math.ceil((out * inner) / NF4_BLOCKS.block);
  const bytes = (size) => Uint8Array.from({ length: size }, (_, i) => (i * 167 + (i >> 8) * 13) & 255);
  const tensor = (values, dtype) => device.tensor(values, [values.length], { dtype });
  return [
    tensor(bytes((out * inner) / 2), "u8"),
    tensor(nf4Table({ double: true }), "f32"),
    tensor(new Float32Array(Math.ceil(blocks / NF4_BLOCKS.nestedBlock)).fill(0.01), "f32"),
    tensor(bytes(blocks), "u8"),
  ];
}

const headOperands = (model, tokens, dtype) => [
  normals([tokens, model.d]),
  normals([model.V, model.d], dtype),
  device.tensor(
    Int32Array.from({ length: tokens }, (_, i) => (i * 7919) % model.V),
    [tokens],
    { dtype: "i32" },
  ),
];

/** Matrix multiplications: name, operands, and a call whose results the caller frees. */
const MATMULS = [
  [
    `linear ${few} x ${small.d} of ${small.d}`,
    () => [normals([few, small.d]), normals([small.d, small.d])],
    (x, w) => [device.ops.linear(x, w)],
  ],
  [
    `linear ${few} x ${small.f} of ${small.d}`,
    () => [normals([few, small.f]), normals([small.d, small.f])],
    (x, w) => [device.ops.linear(x, w)],
  ],
  [
    `matmulTN [${small.d / 8}, ${small.d}] over ${many}`,
    () => [normals([many, small.d / 8]), normals([many, small.d])],
    (a, b) => [device.ops.matmulTN(a, b)],
  ],
  [
    `linear ${many} x ${large.d} of 16`,
    () => [normals([many, large.d]), normals([16, large.d])],
    (x, w) => [device.ops.linear(x, w)],
  ],
  ...[many / 4, many].map((tokens) => [
    `nf4Linear ${tokens} x ${large.f} of ${large.d}`,
    () => [normals([tokens, large.f]), ...nf4(large.d, large.f)],
    (...io) => [device.ops.nf4Linear(...io.slice(0, 4), io[4], null, { out: large.d })],
  ]),
  ...["f32", "f16"].flatMap((dtype) =>
    [64, 128].map((chunkTokens) => [
      `lmHeadLoss with dh ${dtype}, 256 by ${chunkTokens} tokens`,
      () => headOperands(large, 256, dtype),
      (...io) => Object.values(device.run("lmHeadLoss", io, { chunkTokens }, ["dh"])),
    ]),
  ),
];

/** Allowed differences, relative to the largest value: of sums in another order, and of operands rounded to f16. */
const SUM_TOLERANCE = 1e-3;
const F16_TOLERANCE = 2 ** -8;

/** Attention and its gradients with the heads of a model. The gradients get y and lse of one forward pass. */
function attentionCases({ heads, keyHeads, c }, tokens, dtype) {
  const shape = (count) => [1, tokens, count, c];
  const inputs = () => [heads, keyHeads, keyHeads].map((count) => normals(shape(count), dtype));
  const saved = () => {
    const [q, k, v] = inputs();
    device.retile({ ...DEFAULT_TILES, subgroupMatrixQueries: 0 });
    const { y, lse } = device.run("attention", [q, k, v], {}, ["lse"]);
    return [normals(shape(heads), dtype), q, k, v, y, lse];
  };
  const name = `${dtype} ${tokens} tokens, ${heads} heads of ${c} over ${keyHeads}`;
  const call =
    (op) =>
    (...io) =>
      Object.values(device.run(op, io, {}, []));
  return [
    [`attention ${name}`, inputs, call("attention")],
    [`attentionBackwardQ ${name}`, saved, call("attentionBackwardQ")],
    [`attentionBackwardKV ${name}`, saved, call("attentionBackwardKV")],
  ];
}

const ATTENTION = ["f32", "f16"].flatMap((dtype) => [
  ...attentionCases(small, few, dtype),
  ...attentionCases(large, many, dtype),
]);

const { split } = options;
const CASES = [
  ...MATMULS.map((item) => ({ item, tile: "splitKBlocks", values: split, tolerance: SUM_TOLERANCE })),
  ...(device.profile.subgroupMatrices
    ? ATTENTION.map((item) => ({
        item,
        tile: "subgroupMatrixQueries",
        values: [0, 16],
        tolerance: F16_TOLERANCE,
      }))
    : []),
];

const chosen = CASES.filter(({ item: [name] }) => name.includes(options.only));
if (chosen.length === 0) {
  const without = device.profile.subgroupMatrices
    ? ""
    : " (attention's wait for an adapter with subgroup matrices)";
  usageError(`--only ${options.only}: no case has this in its name${without}`);
}

/** Wall time of a call in a batch, in milliseconds. */
async function wall(call, calls) {
  const from = performance.now();
  for (let i = 0; i < calls; i++) for (const tensor of call()) tensor.dispose();
  await device.synchronize();
  return (performance.now() - from) / calls;
}

/** GPU time of a call in milliseconds; null without timestamps. */
async function kernels(call, calls) {
  if (!device.gpu.features.has("timestamp-query")) return null;
  device.startProfile();
  for (let i = 0; i < calls; i++) for (const tensor of call()) tensor.dispose();
  const times = await device.stopProfile();
  return times.reduce((sum, { elapsedMs }) => sum + elapsedMs, 0) / calls;
}

/** The largest difference of two results, relative to the largest value; NaN if there is one. */
function distance(got, want) {
  let [worst, largest] = [0, 0];
  for (let i = 0; i < want.length; i++) {
    const difference = Math.abs(got[i] - want[i]);
    if (!(difference <= worst)) worst = difference; // NaN too
    largest = Math.max(largest, Math.abs(want[i]));
  }
  return worst / Math.max(largest, 1e-30);
}

async function readAll(tensors) {
  const values = [];
  for (const tensor of tensors) {
    values.push(await tensor.read());
    tensor.dispose();
  }
  return values;
}

async function measure({ item: [name, make, run], tile, values, tolerance }) {
  const operands = make();
  const call = () => run(...operands);
  const tables = values.map((value) => ({ ...DEFAULT_TILES, [tile]: value }));
  const rows = [];
  const results = [];
  for (const tiles of tables) {
    device.retile(tiles);
    results.push(await readAll(call())); // compiles the kernels
    const calls = Math.max(1, Math.min(MAX_CALLS, Math.floor(BATCH_MS / (await wall(call, 1)))));
    rows.push({ value: tiles[tile], calls, wallMs: Number.POSITIVE_INFINITY, gpuMs: null });
  }
  const from = performance.now();
  while (performance.now() - from < WARM_MS) await wall(call, rows.at(-1).calls);
  for (let round = 0; round < options.rounds; round++) {
    for (const [i, row] of rows.entries()) {
      device.retile(tables[i]);
      row.wallMs = Math.min(row.wallMs, await wall(call, row.calls));
    }
  }
  for (const [i, row] of rows.entries()) {
    device.retile(tables[i]);
    row.gpuMs = await kernels(call, row.calls);
    row.difference = Math.max(...results[i].map((values, j) => distance(values, results[0][j])));
  }
  for (const tensor of operands) tensor.dispose();
  return { name, tile, tolerance, rows };
}

const results = [];
for (const choice of chosen) {
  const result = await measure(choice);
  const [first] = result.rows;
  const columns = result.rows.map(
    ({ value, wallMs, gpuMs }) =>
      `${value}: ${wallMs.toFixed(3)} ms (kernels ${gpuMs?.toFixed(3) ?? "?"}) x${(first.wallMs / wallMs).toFixed(2)}`,
  );
  console.error(`${result.name.padEnd(44)} ${result.tile} ${columns.join("  ")}`);
  results.push(result);
}
const failures = results.filter(({ rows, tolerance }) =>
  rows.some(({ difference }) => !(difference < tolerance)),
);
for (const { name, rows } of failures) {
  console.error(`FAILED ${name}: differs by ${rows.map(({ difference }) => difference).join(", ")}`);
}
finish({ results, failures }, failures.length > 0 ? 1 : 0);
