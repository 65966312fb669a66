// What the host pays for each kernel it dispatches, and for each op around it: medians over batches of 2,000 small ones.
//
//   npm run build && node bench/host-cost.mjs [--device webgpu] [--rounds 15]

import { parseArgs } from "node:util";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { ensureRuntimeFolder } from "../scripts/lib/environment.mjs";

const { values: options } = parseArgs({
  options: { device: { type: "string", default: "webgpu" }, rounds: { type: "string", default: "15" } },
});
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
  add: () => ops.add(x, x).dispose(),
  rmsNorm: () => ops.rmsNorm(h, gain).dispose(),
  linear: () => ops.linear(h, w).dispose(),
};

const median = (list) => [...list].sort((a, b) => a - b)[list.length >> 1];
for (const [name, call] of Object.entries(CASES)) {
  const each = [];
  for (let round = -2; round < Number(options.rounds); round++) {
    await device.synchronize();
    const started = process.cpuUsage();
    const from = process.hrtime.bigint();
    for (let i = 0; i < COUNT; i++) call();
    const wall = Number(process.hrtime.bigint() - from) / 1000 / COUNT;
    const cpu = process.cpuUsage(started);
    if (round >= 0) each.push({ wall, user: (cpu.user + cpu.system) / COUNT });
  }
  const wall = median(each.map((one) => one.wall));
  console.log(
    `${name.padEnd(26)} ${wall.toFixed(1)} µs (least ${Math.min(...each.map((one) => one.wall)).toFixed(1)})`,
  );
}
device.dispose();
releaseDawn();
process.exit(0);
