// Compares the speed of sidenet with that of other libraries on the same kind of device, alternating in one process. Results
// are compared first. Prints median rates, and sidenet's as a multiple of the faster peer's.
//
//   npm run build && node bench/peers.mjs [--device webgpu|wasm] [--threads 2] [--rounds 15] [--only matmul,step] [--json FILE]
//        [--torch PYTHON]
//
// webgpu: TensorFlow.js and jax-js on the same Dawn, all with sidenet's slowed event pump. wasm: jax-js with the same number of
// threads. --torch is a Python that has PyTorch, whose rates are printed too but do not count as a peer's.

import { writeFileSync } from "node:fs";
import { Random, sizeOf } from "@sidenet/tensor";
import { installWebGpuGlobals } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "../scripts/lib/environment.mjs";
import { checkNames, scriptOptions } from "../scripts/lib/options.mjs";
import { openJax } from "./peers/jax.mjs";
import { MODEL } from "./peers/llama.mjs";
import { openSidenet } from "./peers/sidenet.mjs";
import { openTfjs } from "./peers/tfjs.mjs";
import { openTorch } from "./peers/torch.mjs";
import { median } from "./shared.mjs";

const options = scriptOptions(
  { device: "wasm", threads: 2, rounds: 15, only: [], json: null, torch: null },
  { positive: ["threads", "rounds"] },
);
checkNames("device", [options.device], ["webgpu", "wasm"]);

let stream = 0;
const random = (...shape) => ({ shape, values: new Random(1, stream++).normals(sizeOf(shape)) });

/** Extents M, K, N of matrix multiplications; in "nt" the second operand is stored [N, K], as weights are. */
const MATMULS = [
  ...[256, 512, 1024].map((n) => [n, n, n, "nn"]),
  ...[
    [256, 576, 576],
    [256, 576, 192],
    [256, 576, 1536],
    [256, 1536, 576],
    [128, 576, 49152],
  ].map((shape) => [...shape, "nt"]),
];

/** Independent calls of one small op, to measure the overhead of a call. */
const CALLS = 1000;

function cases() {
  const list = MATMULS.map(([M, K, N, form]) => ({
    group: "matmul",
    name: `${form} ${M}x${K}x${N}`,
    unit: "GFLOP/s",
    amount: 2 * M * K * N,
    make(peer) {
      const nt = form === "nt";
      return peer.matmul(random(M, K), nt ? random(N, K) : random(K, N), nt);
    },
  }));
  const [T, H, D] = [256, 9, 64];
  const heads = (n) => random(1, T, n, D);
  const rows = (name, amount, make) => ({ group: name, name, unit: "GB/s", amount: 4 * amount, make });
  const labels = Int32Array.from({ length: 128 }, (_, i) => (i * 7919) % 49152);
  list.push(
    {
      group: "attention",
      name: `attention T ${T}, ${H} heads`,
      unit: "GFLOP/s",
      amount: 2 * H * D * T * (T + 1),
      make: (peer) => peer.attention(heads(H), heads(H), heads(H)),
    },
    rows("rmsNorm", 2 * 512 * 576, (peer) => peer.rmsNorm(random(512, 576), random(576))),
    rows("softmax", 2 * 2304 * 256, (peer) => peer.softmax(random(2304, 256))),
    rows("crossEntropy", 128 * 49152, (peer) => peer.crossEntropy(random(128, 49152), labels)),
    rows("siluMul", 3 * 512 * 1536, (peer) => peer.siluMul(random(512, 1536), random(512, 1536))),
    rows("transpose", 2 * 1024 * 1536, (peer) => peer.transpose(random(1024, 1536))),
    rows("add", 3 * 512 * 576, (peer) => peer.add(random(512, 576), random(512, 576))),
    {
      group: "small",
      name: "200 adds of 256 values",
      unit: "adds/ms",
      amount: 200 * 1e6,
      make: (peer) => peer.manySmall(random(256), 200),
    },
    {
      group: "dispatch",
      name: "one small op",
      unit: "µs",
      calls: CALLS,
      make: (peer) => peer.smallOp(CALLS),
    },
    {
      group: "step",
      name: "training step",
      unit: "tokens/s",
      amount: MODEL.B * MODEL.T * 1e9,
      make: (peer) => peer.trainingStep(),
      rounds: Math.min(5, options.rounds),
    },
  );
  const { only } = options;
  checkNames("only", only, [...new Set(list.map(({ group }) => group))]);
  return only.length === 0 ? list : list.filter(({ group }) => only.includes(group));
}

/** The call of each peer on the same operands, or the message of the error that making it threw. */
async function callsOf(peers, item) {
  const first = stream;
  const calls = [];
  for (const peer of peers) {
    stream = first; // the same numbers for everybody
    try {
      calls.push(await item.make(peer));
    } catch (error) {
      calls.push(String(error.message).split("\n")[0]);
    }
  }
  return calls;
}

/**
 * By peer, why it is not timed: it threw, or its result differs from sidenet's by more than 1e-3 of the largest value. Null if
 * it is timed.
 */
async function compare(calls) {
  if (!calls[0].values) return calls.map((call) => (typeof call === "string" ? call : null));
  const ours = await calls[0].values();
  let largest = 0;
  for (const value of ours) largest = Math.max(largest, Math.abs(value));
  const problems = [null];
  for (const call of calls.slice(1)) {
    if (typeof call === "string" || !call.values) {
      problems.push(typeof call === "string" ? call : null);
      continue;
    }
    try {
      const theirs = await call.values();
      let error = theirs.length === ours.length ? 0 : Number.POSITIVE_INFINITY;
      for (let i = 0; i < ours.length; i++) error = Math.max(error, Math.abs(ours[i] - theirs[i]));
      problems.push(
        error <= 1e-3 * largest ? null : `differs from ours by ${(error / largest).toExponential(1)}`,
      );
    } catch (error) {
      problems.push(String(error.message).split("\n")[0]);
    }
  }
  return problems;
}

/** Nanoseconds of a call by peer (null if it is not timed). Calls alternate, after two rounds of warm-up. */
async function race(peers, item) {
  const { rounds = options.rounds } = item;
  const calls = await callsOf(peers, item);
  const problems = await compare(calls);
  const times = peers.map(() => []);
  const last = [];
  for (let round = -2; round < rounds; round++) {
    for (let turn = 0; turn < calls.length; turn++) {
      const i = (round + 2 + turn) % calls.length; // another peer begins each round
      const call = calls[i];
      if (problems[i] !== null) continue;
      const start = process.hrtime.bigint();
      try {
        const answer = await call();
        last[i] = answer?.result ?? answer;
        // A peer in its own process measures its times itself.
        const elapsed = answer?.elapsedNs ?? Number(process.hrtime.bigint() - start);
        if (round >= 0) times[i].push(elapsed);
      } catch (error) {
        problems[i] = String(error.message).split("\n")[0];
      }
    }
  }
  const of = (reduce) => times.map((list, i) => (problems[i] === null ? reduce(list) : null));
  return { times: of(median), least: of((list) => Math.min(...list)), last, problems };
}

async function openPeers() {
  const { device, threads } = options;
  ensureRuntimeFolder();
  if (device === "webgpu") await installWebGpuGlobals();
  const ours = await openSidenet({ device, threads });
  const jax = await openJax({ device, threads });
  const others = device === "webgpu" ? [jax, await openTfjs()] : [jax];
  return [ours, ...others, ...(options.torch ? [await openTorch(options.torch, threads)] : [])];
}

const chosen = cases();
const peers = await openPeers();
for (const { name, label } of peers) console.log(`${name}: ${label}`);
console.log(`Node ${process.version}, ${options.rounds} rounds, medians\n`);

const geometricMean = (list) => Math.exp(list.reduce((sum, ratio) => sum + Math.log(ratio), 0) / list.length);
const report = [];
for (const item of chosen) {
  const { times, least, last, problems } = await race(peers, item);
  const rivals = (list) => list.filter((time, i) => i > 0 && !peers[i].isBeside && time !== null);
  const lead = (list) => Math.min(...rivals(list)) / list[0];
  const ratio = lead(times);
  const rates = times.map((time) => time && (item.calls ? time / item.calls / 1000 : item.amount / time));
  const shown = peers.map(({ name }, i) => `${name} ${rates[i] === null ? "-" : rates[i].toFixed(1)}`);
  const check = item.group === "step" ? `, losses ${last.map((loss) => loss?.toFixed(4)).join(" ")}` : "";
  console.log(
    `${item.name.padEnd(22)} ${shown.join("  ")} ${item.unit}  ratio ${ratio.toFixed(2)} (of the fastest rounds ${lead(least).toFixed(2)})${check}`,
  );
  for (const [i, problem] of problems.entries()) if (problem) console.log(`  ${peers[i].name}: ${problem}`);
  report.push({
    name: item.name,
    group: item.group,
    unit: item.unit,
    rates,
    ratio,
    ratioOfFastest: lead(least),
    problems,
  });
}
console.log();
for (const group of new Set(report.map((row) => row.group))) {
  const ratios = report
    .filter((row) => row.group === group && Number.isFinite(row.ratio))
    .map((row) => row.ratio);
  if (ratios.length === 0) continue;
  console.log(
    `${group.padEnd(12)} ${geometricMean(ratios).toFixed(2)} times${ratios.length > 1 ? ", geometric mean" : ""}`,
  );
}
const all = report.map((row) => row.ratio).filter(Number.isFinite);
console.log(
  `all          ${geometricMean(all).toFixed(2)} times, geometric mean; least ${Math.min(...all).toFixed(2)}`,
);
if (options.json) {
  writeFileSync(
    options.json,
    JSON.stringify({
      device: options.device,
      peers: peers.map(({ label }) => label),
      date: new Date().toISOString(),
      report,
    }),
  );
}
for (const peer of peers) peer.close();
process.exit(0); // jax-js has no way to stop its threads
