// Measures the cost of an op on the host: medians over batches of 2,000 calls of small ops.
//
//   npm run build && node bench/host-cost.mjs [--device webgpu] [--rounds 15] [--only add]
//
// --only takes names of ops or their beginnings. Prints wall time and, on Linux, the CPU time of the calling thread. With a software driver, which computes on the same
// cores, only the CPU time is the host's cost.

import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "../scripts/lib/environment.mjs";
import { checkNames, scriptOptions } from "../scripts/lib/options.mjs";
import { median, threadCpuMs } from "./shared.mjs";

const options = scriptOptions({ device: "webgpu", rounds: 15, only: [] }, { positive: ["rounds"] });
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

const isMeant = (wanted, name) => name.startsWith(wanted);
checkNames("only", options.only, Object.keys(CASES), isMeant);

const shown = (list) =>
  list.every(Number.isFinite)
    ? `${median(list).toFixed(1)} µs (fastest ${Math.min(...list).toFixed(1)})`
    : "-";

for (const [name, call] of Object.entries(CASES)) {
  if (options.only.length > 0 && !options.only.some((wanted) => isMeant(wanted, name))) continue;
  const [wall, host] = [[], []];
  let dispatches = 0;
  for (let round = -2; round < options.rounds; round++) {
    await device.synchronize();
    const before = device.statistics?.().dispatches ?? 0;
    const [from, cpu] = [performance.now(), threadCpuMs()];
    for (let i = 0; i < COUNT; i++) call();
    const [to, after] = [performance.now(), threadCpuMs()];
    dispatches = ((device.statistics?.().dispatches ?? 0) - before) / COUNT;
    if (round < 0) continue;
    wall.push((1000 * (to - from)) / COUNT);
    host.push((1000 * (after - cpu)) / COUNT);
  }
  console.log(`${name.padEnd(26)} wall ${shown(wall)}, host ${shown(host)}, ${dispatches} dispatches a call`);
}
device.dispose();
releaseDawn();
process.exit(0);
