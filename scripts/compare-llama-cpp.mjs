// Compares sidenet's greedy token ids with llama.cpp's on the same GGUF file: an independent check of reader, tokenizer,
// decoder and kernels.   node scripts/compare-llama-cpp.mjs [--model FILE.gguf] [--device webgpu|cpu] [--prompt TEXT]...
//
// llama.cpp rounds activations to 8 bits where weights are Q4_1 or Q8_0; sidenet does not. So two tokens of nearly equal logits
// can come out in the other order, and the default prompts are ones whose every step is decided clearly.

import { spawnSync } from "node:child_process";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { fetchModel } from "./fetch-model.mjs";
import { withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";

const ROOT = resolve(fileURLToPath(import.meta.url), "../..");
const TOKENS = 32;
const PROMPTS = [
  "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12,",
  "1 2 3 4",
  "Mary had a little lamb,",
  "The opposite of hot is cold. The opposite of big is",
];

const llamaIds = (modelPath, prompts) =>
  withLlamaModel(modelPath, {}, async (model) => {
    const results = [];
    for (const prompt of prompts) {
      // One thread: several spin at barriers, and starve each other on a busy machine with few cores.
      const context = await model.createContext({ contextSize: 512, batchSize: 512, threads: 1 });
      const sequence = context.getSequence();
      const ids = model.tokenize(prompt, true);
      if (model.tokens.shouldPrependBosToken && model.tokens.bos !== null) ids.unshift(model.tokens.bos);
      const out = [];
      for await (const id of sequence.evaluate(ids, { temperature: 0, yieldEogToken: true })) {
        out.push(id);
        if (out.length === TOKENS) break;
      }
      results.push(out);
      await context.dispose();
    }
    return results;
  });

function sidenetIds(model, device, prompt) {
  const args = ["generate", "--model", model, "--device", device, "--max-tokens", String(TOKENS), "--json"];
  const bin = join(ROOT, "packages/ladder/bin/sidenet.js");
  const run = spawnSync(process.execPath, [bin, ...args, "--prompt", prompt], { encoding: "utf8" });
  if (run.status !== 0) throw new Error(`sidenet generate failed:\n${run.stderr}`);
  return JSON.parse(run.stdout.trim().split("\n").at(-1)).ids;
}

const values = scriptOptions({
  model: null,
  device: "webgpu",
  prompt: { type: "string", multiple: true, default: PROMPTS },
});
const model = values.model ?? (await fetchModel());
const theirs = await llamaIds(model, values.prompt);
let differing = 0;
for (const [i, prompt] of values.prompt.entries()) {
  const ours = sidenetIds(model, values.device, prompt);
  const at = theirs[i].findIndex((id, n) => id !== ours[n]);
  const verdict = at < 0 ? `all ${theirs[i].length} ids equal` : `differ at token ${at}`;
  console.log(`${JSON.stringify(prompt)}: ${verdict}`);
  if (at < 0) continue;
  differing++;
  console.log(`  sidenet   ${ours.join(" ")}\n  llama.cpp ${theirs[i].join(" ")}`);
}
console.log(`${values.prompt.length - differing} of ${values.prompt.length} prompts agree`);
process.exit(differing === 0 ? 0 : 1);
