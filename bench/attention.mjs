// Times attention and its gradients on wasm or webgpu beside matrix multiplications, alternating in one process. Prints GFLOP/s
// (only visible pairs of query and key count) and the share of the rate of a `linear` of 576 x 576 over the same tokens.
//
//   npm run build && node bench/attention.mjs [--tokens 256,512,1024] [--heads 9,3,64] [--device wasm] [--threads 2]
//        [--rounds 25] [--processor-time] [--base DIR]
//
// --heads gives the numbers of query heads and key heads, and the head size. --base is another built checkout whose attention
// is timed too. --processor-time measures CPU time instead of wall time, for busy machines: of one thread on wasm, of all
// threads of a software driver on webgpu.

import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { sizeOf } from "@sidenet/tensor";
import { ensureRuntimeFolder, ROOT } from "../scripts/lib/environment.mjs";
import { scriptOptions, usageError } from "../scripts/lib/options.mjs";

const options = scriptOptions(
  {
    tokens: [256, 512, 1024],
    heads: [9, 3, 64],
    device: "wasm",
    threads: 2,
    rounds: 25,
    "processor-time": false,
    base: null,
  },
  { positive: ["tokens", "heads", "threads", "rounds"] },
);
if (options.heads.length !== 3)
  usageError(`--heads ${options.heads}: wanted three numbers: query heads, key heads, head size`);
const [H, G, D] = options.heads;
if (options.base !== undefined && !existsSync(resolve(options.base, "packages/tensor/dist/index.js")))
  usageError(`--base ${options.base}: no built checkout is there`);
const isCpuTime = options["processor-time"];
const threads = isCpuTime ? 1 : options.threads;
/** Calls of each row in a round. The fastest counts, since other load can only slow a call down. */
const CALLS = 4;

/** Opens a device of the checkout at `root`; `suffix` marks its rows. */
async function openSide(suffix, root) {
  const load = (path) => import(pathToFileURL(resolve(root, "packages/tensor/dist", path)).href);
  const { Random } = await load("index.js");
  const { openDevice, openNodeWasm } = await load("node/index.js");
  const isWasm = options.device === "wasm";
  const device = isWasm ? await openNodeWasm({ threads }) : (await openDevice(options.device)).device;
  return { suffix, device, Random };
}

/** The rows of one checkout: attention, and with `matmuls` the matrix multiplications. */
function rowsOf({ suffix, device, Random }, T, matmuls) {
  let stream = 0;
  const normals = (...shape) => device.tensor(new Random(1, stream++).normals(sizeOf(shape)), shape);
  const row = (label, flops, op, operands, residuals = []) => ({
    name: `${label}${suffix}`,
    flops,
    best: Number.POSITIVE_INFINITY,
    call: async () => {
      for (const tensor of Object.values(device.run(op, operands, {}, residuals))) tensor.dispose();
      await device.synchronize();
    },
  });
  const [q, k, v, dy] = [normals(1, T, H, D), normals(1, T, G, D), normals(1, T, G, D), normals(1, T, H, D)];
  const { y, lse } = device.run("attention", [q, k, v], {}, ["lse"]);
  const saved = [dy, q, k, v, y, lse];
  const pairs = (H * D * T * (T + 1)) / 2;
  const rows = [
    row("attention", 4 * pairs, "attention", [q, k, v], ["lse"]),
    row("attentionBackwardQ", 6 * pairs, "attentionBackwardQ", saved),
    row("attentionBackwardKV", 8 * pairs, "attentionBackwardKV", saved),
  ];
  if (!matmuls) return rows;
  const [left, right, weights] = [normals(H, T, D), normals(H, T, D), normals(H, T, T)];
  return [
    row("linear", 2 * T * 576 * 576, "linear", [normals(T, 576), normals(576, 576), null]),
    ...rows,
    row("q·kᵀ alone", 2 * H * T * T * D, "matmulNT", [left, right]),
    row("p·v alone", 2 * H * T * T * D, "matmul", [weights, right]),
  ];
}

async function milliseconds(call) {
  const [wall, processor] = [performance.now(), process.cpuUsage()];
  await call();
  if (!isCpuTime) return performance.now() - wall;
  const { user, system } = process.cpuUsage(processor);
  return (user + system) / 1000;
}

ensureRuntimeFolder();
const sides = [await openSide("", ROOT)];
if (options.base) sides.push(await openSide(" (base)", options.base));
console.log(
  `${sides[0].device.label}; ${H} heads of ${D} over ${G} key heads; ${isCpuTime ? "CPU" : "wall"} time`,
);
for (const T of options.tokens) {
  const rows = sides.flatMap((side, i) => rowsOf(side, T, i === 0));
  for (let round = 0; round < options.rounds; round++) {
    for (const row of round % 2 === 0 ? rows : [...rows].reverse()) {
      for (let i = 0; i < CALLS; i++) row.best = Math.min(row.best, await milliseconds(row.call));
    }
  }
  const rate = ({ flops, best }) => flops / best / 1e6;
  for (const row of rows) {
    const share = Math.round((100 * rate(row)) / rate(rows[0]));
    const shown = `${row.best.toFixed(3)} ms  ${rate(row).toFixed(1)} GFLOP/s  ${share} %`;
    console.log(`T ${T}  ${row.name.padEnd(26)} ${shown}`);
  }
}
for (const { device } of sides) device.dispose();
process.exit(0); // the driver's threads would keep the process running
