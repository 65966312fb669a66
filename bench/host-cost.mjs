// What the host pays for each kernel it dispatches, and for each op around it: medians over batches of 2,000 small ones.
//
//   npm run build && node bench/host-cost.mjs [--device webgpu] [--rounds 15] [--only add]
//
// Wall time, and the time that the calling thread itself computed where the system tells it (Linux): on a machine whose cores
// a software driver shares, only the latter is the host's.

import { readFileSync } from "node:fs";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "../scripts/lib/environment.mjs";
import { scriptOptions } from "../scripts/lib/options.mjs";

const options = scriptOptions({ device: "webgpu", rounds: 15, only: "" });
const COUNT = 2000;

ensureRuntimeFolder();
const { device } = await openDevice(options.device);
const { ops } = device;
const x = device.zeros([64]);
const other = device.zeros([64]);
const w = device.zeros([64, 64]);
const h = device.zeros([8, 64]);
const gain = device.zeros([64]);

const CASES = {
  "add in place (no output)": () => ops.accumulate(x, other),
  add: () => ops.add(x, other).dispose(),
  rmsNorm: () => ops.rmsNorm(h, gain).dispose(),
  linear: () => ops.linear(h, w).dispose(),
};

/** Nanoseconds that this thread has computed; null where the system does not say. */
function computedNs() {
  try {
    return Number(readFileSync("/proc/thread-self/schedstat", "utf8").split(" ")[0]);
  } catch {
    return null;
  }
}

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
const shown = (list) =>
  list.includes(null) ? "-" : `${median(list).toFixed(1)} µs (least ${Math.min(...list).toFixed(1)})`;

for (const [name, call] of Object.entries(CASES)) {
  if (!name.startsWith(options.only)) continue;
  const [wall, host] = [[], []];
  let dispatches = 0;
  for (let round = -2; round < options.rounds; round++) {
    await device.synchronize();
    const before = device.statistics?.().dispatches ?? 0;
    const [from, computed] = [process.hrtime.bigint(), computedNs()];
    for (let i = 0; i < COUNT; i++) call();
    const [to, after] = [process.hrtime.bigint(), computedNs()];
    dispatches = ((device.statistics?.().dispatches ?? 0) - before) / COUNT;
    if (round < 0) continue;
    wall.push(Number(to - from) / 1000 / COUNT);
    host.push(computed === null ? null : (after - computed) / 1000 / COUNT);
  }
  console.log(`${name.padEnd(26)} wall ${shown(wall)}, host ${shown(host)}, ${dispatches} dispatches a call`);
}
device.dispose();
releaseDawn();
process.exit(0);
