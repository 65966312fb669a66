// Times a training step of each method on the same backbone, alternating in one process. Prints medians, tokens/s, and the
// speed relative to QLoRA.
//
//   npm run build && node bench/methods.mjs [--model M] [--device wasm|webgpu|auto] [--context 256] [--batch 4]
//     [--methods ladder,qlora] [--rounds 7] [--scored 1] [--quantize nf4|none] [--profile] [--out results.json]
//
// --scored 0.6 scores only that share of each sequence, as if the rest were a prompt. --quantize none uses dequantized weights
// in f32. --profile adds the time of a step by op, on devices where an op has computed when it returns (wasm, cpu).

import { writeFileSync } from "node:fs";
import { Decoder, effectiveDepth, loadWeights, makeAdapter, planStep, Trainer } from "@sidenet/ladder";
import { openModel } from "@sidenet/ladder/node";
import { Random } from "@sidenet/tensor";
import { openDevice } from "@sidenet/tensor/node";
import { fetchModel } from "../scripts/fetch-model.mjs";
import { checkNames, scriptOptions, usageError } from "../scripts/lib/options.mjs";
import { dequantize, median } from "./shared.mjs";

const options = scriptOptions(
  {
    model: null,
    device: "auto",
    context: 256,
    batch: 4,
    rounds: 7,
    scored: { type: "string", default: "1" },
    quantize: "nf4",
    methods: ["ladder", "xladder", "qlora", "qlora+checkpointing"],
    profile: false,
    out: null,
  },
  { positive: ["context", "batch", "rounds"] },
);
checkNames("quantize", [options.quantize], ["nf4", "none"]);
const { context, batch: batchSize, rounds } = options;
const scored = Number(options.scored);
if (!(scored > 0 && scored <= 1))
  usageError(`--scored ${options.scored}: wanted a share, above 0 and at most 1`);
const quantizeBlocks = options.quantize === "nf4";

const { device } = await openDevice(options.device);
const model = await openModel(options.model ?? (await fetchModel()));
const { config } = model;

async function openDecoder() {
  const dtype = device.profile.f16 && device.kind === "webgpu" ? "f16" : "f32";
  const quantized = await loadWeights(device, config, model.checkpoint, { quantizeBlocks: true, dtype });
  return new Decoder(config, quantizeBlocks ? quantized : dequantize(config, quantized));
}

/** Random tokens: their values do not change the time of a step. */
function randomBatch() {
  const random = new Random(1, 0);
  const inputIds = Int32Array.from({ length: batchSize * context }, () =>
    Math.floor(random.uniform() * config.vocabSize),
  );
  const labels = inputIds.map((id, i) => ((i % context) / context < 1 - scored ? -100 : id));
  return { inputIds, labels, attentionMask: null, batchSize, length: context };
}

function trainerOf(name, decoder) {
  const [method, memory] = name.split("+");
  const asLora = method === "qlora" && !quantizeBlocks ? "lora" : method; // QLoRA on dequantized weights is LoRA
  const adapter = makeAdapter({ method: asLora }, decoder, model.name);
  const gradientCheckpointing = memory === "checkpointing";
  const trainer = new Trainer(decoder, adapter, { learningRate: () => 1e-4, gradientCheckpointing });
  const storage = { quantizeBlocks: true, dtype: "f32" };
  const plan = planStep(config, {
    method: { method },
    storage,
    memory: { gradientCheckpointing },
    batchSize,
    context,
  });
  return { name, trainer, adapter, plan, times: [], depth: effectiveDepth(adapter, config) };
}

/** Milliseconds by op since `start`: from the end of the op before to the end of this one. */
function opClock() {
  const total = new Map();
  let last = performance.now();
  device.onOp = (op) => {
    const now = performance.now();
    total.set(op, (total.get(op) ?? 0) + now - last);
    last = now;
  };
  return {
    start: () => {
      total.clear();
      last = performance.now();
    },
    read: () => Object.fromEntries([...total].sort((a, b) => b[1] - a[1])),
  };
}

const decoder = await openDecoder();
const batch = randomBatch();
const runs = options.methods.map((name) => trainerOf(name, decoder));
const clock = options.profile ? opClock() : null;
for (let round = -1; round < rounds; round++) {
  for (const run of runs) {
    await device.synchronize();
    clock?.start();
    const start = performance.now();
    const { loss } = await run.trainer.step(batch);
    if (!Number.isFinite(loss)) throw new Error(`${run.name}: the loss is ${loss}`);
    if (round < 0) continue; // the first step compiles
    run.times.push(performance.now() - start);
    run.ops = clock?.read();
  }
}

const tokens = batchSize * context;
const base = runs.find(({ name }) => name === "qlora");
/** The median of ratios within a round: load on the machine slows both steps of a round alike. */
const ratio = (over, run) => median(over.times.map((time, i) => time / run.times[i]));
const results = {
  device: `${device.kind}: ${device.label}`,
  model: model.name,
  context,
  batchSize,
  scored,
  rounds,
  quantize: options.quantize,
  date: new Date().toISOString().slice(0, 10),
  methods: runs.map((run) => ({
    method: run.name,
    trainableParameters: run.adapter.parameters.count,
    effectiveDepth: run.depth,
    medianMs: median(run.times),
    bestMs: Math.min(...run.times),
    tokensPerSecond: (1000 * tokens) / median(run.times),
    timesAsFastAsQlora: base ? ratio(base, run) : null,
    plannedFlops: run.plan.flops,
    plannedTimesAsFast: base ? base.plan.flops / run.plan.flops : null,
    ...(run.ops && { opMs: run.ops }),
  })),
};
console.log(
  `${results.device}; ${batchSize} x ${context} tokens, ${Math.round(100 * scored)} % of them scored, ${options.quantize}`,
);
for (const m of results.methods) {
  const speed = base
    ? `  ${m.timesAsFastAsQlora.toFixed(2)} times as fast (by FLOPs ${m.plannedTimesAsFast.toFixed(2)})`
    : "";
  console.log(
    `${m.method.padEnd(22)} ${m.medianMs.toFixed(0).padStart(7)} ms ${m.tokensPerSecond.toFixed(1).padStart(8)} tokens/s${speed}`,
  );
  if (m.opMs) {
    const parts = Object.entries(m.opMs).filter(([, ms]) => ms > 0.005 * m.medianMs);
    console.log(`    ${parts.map(([op, ms]) => `${op} ${ms.toFixed(0)}`).join(", ")}`);
  }
}
if (options.out) writeFileSync(options.out, `${JSON.stringify(results, null, 2)}\n`);
console.log(JSON.stringify(results));
for (const { trainer, adapter } of runs) {
  trainer.dispose();
  adapter.dispose();
}
await model.close();
process.exit(0);
