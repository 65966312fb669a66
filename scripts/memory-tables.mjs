// Writes the tables of planned memory into docs/memory.md, between their markers. A test fails if they are stale.
//
//   npm run build && node scripts/memory-tables.mjs

import { readFileSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { planStep } from "@sidenet/ladder";
import { openModelConfig } from "@sidenet/ladder/node";
import { scriptOptions } from "./lib/options.mjs";

export const FILE = fileURLToPath(new URL("../docs/memory.md", import.meta.url));

const LEAN = { optimizerState: "8bit", savedFormats: { saved: "f16", rungs: "f16" } };

/** Methods with the default settings of `sidenet plan`. */
const METHODS = {
  Ladder: { method: "ladder", gradientCheckpointing: true },
  "xLadder, equal parameters": { method: "xladder", gradientCheckpointing: true },
  QLoRA: { method: "qlora" },
  "QLoRA + checkpointing": { method: "qlora", gradientCheckpointing: true },
  LoRA: { method: "lora", quantizeBlocks: false, optimizerState: "f32" },
};
const CONTEXTS = [512, 2048, 8192, 32768];

/** Ladder on Qwen2.5-7B, with one setting changed from its default. */
const LEVERS = {
  "the defaults": {},
  "`--no-gradient-checkpointing`": { gradientCheckpointing: false },
  "`--optimizer-state f32`": { optimizerState: "f32" },
  "`--saved f32`": { savedFormats: { saved: "f32", rungs: "f16" } },
  "`--rungs f32`": { savedFormats: { saved: "f16", rungs: "f32" } },
  "`--rungs int8`": { savedFormats: { saved: "f16", rungs: "int8" } },
  "`--loss-chunk 8`": { lossChunkBytes: 2 ** 23 },
  "`--chunk-tokens 128`": { chunkTokens: 128 },
  "`--quantize none`": { quantizeBlocks: false },
  "`--quantize-ends`": { quantizeEmbeddings: true },
};

const gb = (bytes) => (bytes / 1e9).toFixed(bytes < 1e9 ? 3 : 2);

function planOf(config, settings, context) {
  const { method, quantizeBlocks = true, quantizeEmbeddings = false, ...memory } = settings;
  return planStep(config, {
    method: { method },
    storage: { dtype: "f16", quantizeBlocks, quantizeEmbeddings },
    memory: { ...LEAN, ...memory },
    batchSize: 1,
    context,
  });
}

const row = (cells) => `| ${cells.join(" | ")} |`;

function comparison(config) {
  const lines = [
    row(["method", ...CONTEXTS, "trained", "FLOPs of a step at 2048"]),
    row(["---", ...CONTEXTS.map(() => "---:"), "---:", "---:"]),
  ];
  for (const [name, settings] of Object.entries(METHODS)) {
    const plans = CONTEXTS.map((context) => planOf(config, settings, context));
    const trained = `${(plans[0].trainableParameters / 1e6).toFixed(2)} M`;
    const flops = `${(plans[1].flops / 1e12).toFixed(2)} T`;
    lines.push(row([name, ...plans.map(({ peakBytes }) => gb(peakBytes)), trained, flops]));
  }
  return lines.join("\n");
}

function levers(config) {
  const lines = [row(["Ladder with", 2048, 8192, "FLOPs at 2048"]), row(["---", "---:", "---:", "---:"])];
  for (const [name, memory] of Object.entries(LEVERS)) {
    const settings = { method: "ladder", gradientCheckpointing: true, ...memory };
    const plans = [2048, 8192].map((context) => planOf(config, settings, context));
    const flops = `${(plans[0].flops / 1e12).toFixed(2)} T`;
    lines.push(row([name, ...plans.map(({ peakBytes }) => gb(peakBytes)), flops]));
  }
  return lines.join("\n");
}

/** Tables by the name of their markers. */
export async function memoryTables() {
  const [small, large] = [await openModelConfig("SmolLM2-135M"), await openModelConfig("Qwen2.5-7B")];
  return { "SmolLM2-135M": comparison(small), "Qwen2.5-7B": comparison(large), levers: levers(large) };
}

/** The page with its tables replaced. */
export function withTables(page, tables) {
  return Object.entries(tables).reduce((text, [name, table]) => {
    const [start, end] = [`<!-- ${name} -->`, `<!-- end of ${name} -->`];
    const [from, to] = [text.indexOf(start), text.indexOf(end)];
    if (from < 0 || to < from) throw new Error(`docs/memory.md lacks ${start} ... ${end}`);
    return `${text.slice(0, from + start.length)}\n${table}\n${text.slice(to)}`;
  }, page);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  scriptOptions({});
  writeFileSync(FILE, withTables(readFileSync(FILE, "utf8"), await memoryTables()));
  console.log("docs/memory.md written");
}
