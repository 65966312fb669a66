// The worker process of bench/regress.mjs, over the built packages of one checkout. It answers each line of JSON with one.
//
//   node bench/regress/worker.mjs ROOT DEVICE

import { join } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { ensureRuntimeFolder } from "../../scripts/lib/environment.mjs";
import { rowsOf } from "./rows.mjs";

/** The calls of a sample take about this long, so that waiting for the device is a small part of it. */
const SAMPLE_MS = 12;
const MAX_CALLS = 500;
/** Warm-up of a row, in which its JavaScript is compiled. */
const WARM_MS = 150;

const [, , root, name] = process.argv;
const load = (path) => import(pathToFileURL(join(root, "packages/tensor/dist", path)).href);
ensureRuntimeFolder();
const library = await load("index.js");
const { openDevice } = await load("node/index.js");
const { device } = await openDevice(name);
const makers = rowsOf(device, library);
/** By row that has run: its call, and the number of calls of a sample. */
const ready = new Map();

async function elapsed(call, calls) {
  const from = process.hrtime.bigint();
  for (let i = 0; i < calls; i++) call();
  await device.synchronize();
  return Number(process.hrtime.bigint() - from) / 1e6;
}

/** Milliseconds of one call. */
async function sample(row) {
  let found = ready.get(row);
  if (found === undefined) {
    const call = makers[row]();
    await elapsed(call, 2); // compiles kernels
    const one = Math.min(await elapsed(call, 1), await elapsed(call, 1));
    const calls = Math.max(1, Math.min(MAX_CALLS, Math.round(SAMPLE_MS / Math.max(one, 0.001))));
    found = { call, calls };
    ready.set(row, found);
    for (let spent = 0; spent < WARM_MS; ) spent += await elapsed(call, calls);
  }
  return (await elapsed(found.call, found.calls)) / found.calls;
}

const answer = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
answer({ device: device.label, rows: Object.keys(makers) });
for await (const line of createInterface({ input: process.stdin })) {
  const { row } = JSON.parse(line);
  try {
    answer({ ms: await sample(row) });
  } catch (error) {
    answer({ error: String(error?.message ?? error).split("\n")[0] });
  }
}
process.exit(0); // the driver's threads would keep the process running
