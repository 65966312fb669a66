// sidenet's WebAssembly device beside jax-js's, taking turns in one process: medians, and ours as a multiple of theirs; with
// --torch, a Python that has PyTorch, its figures from the same run.
//
//   npm run build && node bench/peers.mjs [--threads 2] [--rounds 15] [--only matmul,step] [--torch PYTHON]

import { parseArgs } from "node:util";
import { Random } from "@sidenet/tensor";
import { openJax } from "./peers/jax.mjs";
import { MODEL } from "./peers/llama.mjs";
import { openSidenet } from "./peers/sidenet.mjs";
import { openTorch } from "./peers/torch.mjs";

const { values: options } = parseArgs({
  options: {
    threads: { type: "string", default: "2" },
    rounds: { type: "string", default: "15" },
    only: { type: "string", default: "" },
    torch: { type: "string" },
  },
});

let stream = 0;
function random(...shape) {
  const size = shape.reduce((a, b) => a * b, 1);
  return { shape, values: new Random(1, stream++).normals(size) };
}

/** Products: rows, inner, columns; `nt` with the second operand stored [columns, inner] as weights are. */
const PRODUCTS = [
  ...[256, 512, 1024].map((n) => [n, n, n, "nn"]),
  ...[
    [256, 576, 576],
    [256, 576, 192],
    [256, 576, 1536],
    [256, 1536, 576],
    [128, 576, 49152],
  ].map((shape) => [...shape, "nt"]),
];

/** Calls of one small op in a measurement of what a dispatch costs. */
const CALLS = 1000;

function cases() {
  const list = PRODUCTS.map(([M, K, N, form]) => ({
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
    rows("siluMul", 3 * 512 * 1536, (peer) => peer.siluMul(random(512, 1536), random(512, 1536))),
    {
      group: "step",
      name: "training step",
      unit: "tokens/s",
      amount: MODEL.B * MODEL.T * 1e9,
      make: (peer) => peer.trainingStep(),
      rounds: 5,
    },
    {
      group: "dispatch",
      name: "one small op",
      unit: "µs",
      make: (peer) => peer.smallOp(CALLS),
    },
  );
  const only = options.only.split(",").filter((part) => part !== "");
  return only.length === 0 ? list : list.filter(({ group }) => only.includes(group));
}

const median = (times) => [...times].sort((a, b) => a - b)[times.length >> 1];

/** Nanoseconds of one call by peer, their runs taking turns after two calls that count for nothing. */
async function race(peers, { make, rounds = Number(options.rounds) }) {
  const calls = await Promise.all(peers.map((peer) => make(peer)));
  const times = peers.map(() => []);
  const last = [];
  for (let round = -2; round < rounds; round++) {
    for (const [i, call] of calls.entries()) {
      const start = process.hrtime.bigint();
      const answer = await call();
      const elapsedNs = answer?.elapsedNs ?? Number(process.hrtime.bigint() - start);
      last[i] = answer?.result ?? answer;
      if (round >= 0) times[i].push(elapsedNs);
    }
  }
  return { times: times.map(median), last };
}

const threads = Number(options.threads);
const peers = [await openSidenet(threads), await openJax(threads)];
if (options.torch) peers.push(await openTorch(options.torch, threads));
for (const { name, label } of peers) console.log(`${name}: ${label}`);
console.log(`Node ${process.version}, ${options.rounds} rounds, medians\n`);

const ratios = new Map();
for (const item of cases()) {
  const { times, last } = await race(peers, item);
  const ratio = times[1] / times[0];
  ratios.set(item.group, [...(ratios.get(item.group) ?? []), ratio]);
  const figure = (ns) => (item.amount ? item.amount / ns : ns / CALLS / 1000);
  const rates = peers.map(({ name }, i) => `${name} ${figure(times[i]).toFixed(1)}`);
  const check = item.group === "step" ? `, losses ${last.map((loss) => loss.toFixed(4)).join(" ")}` : "";
  console.log(`${item.name.padEnd(26)} ${rates.join("  ")} ${item.unit}  ratio ${ratio.toFixed(2)}${check}`);
}
console.log();
for (const [group, list] of ratios) {
  const mean = Math.exp(list.reduce((sum, ratio) => sum + Math.log(ratio), 0) / list.length);
  console.log(`${group.padEnd(12)} ${mean.toFixed(2)} times${list.length > 1 ? ", geometric mean" : ""}`);
}
for (const peer of peers) peer.close();
process.exit(0); // jax-js has no way to end its threads
