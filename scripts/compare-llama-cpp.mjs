// Compares sidenet's greedy token ids with llama.cpp's for the same GGUF file: an independent check of reader, tokenizer,
// decoder and kernels.
//
//   npm run build && node scripts/compare-llama-cpp.mjs [--model FILE.gguf] [--device webgpu|wasm|cpu] [--prompt TEXT]...
//
// llama.cpp rounds activations to 8 bits if weights are Q4_1 or Q8_0, and sidenet does not. So the two may choose different
// tokens if logits are nearly equal; with the default prompts, the best logit is clear at every step.

import { fetchModel } from "./fetch-model.mjs";
import { withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { sidenet } from "./lib/sidenet.mjs";
import { requireSuccess } from "./lib/steps.mjs";

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
      // One thread: several would spin at barriers and starve each other on a busy machine with few cores.
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
  const args = ["generate", "--model", model, "--device", device, "--max-tokens", String(TOKENS)];
  return requireSuccess(sidenet([...args, "--prompt", prompt]), "sidenet generate failed.").result.ids;
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
  const verdict = at < 0 ? `all ${theirs[i].length} ids are equal` : `ids differ from token ${at} on`;
  console.log(`${JSON.stringify(prompt)}: ${verdict}`);
  if (at < 0) continue;
  differing++;
  console.log(`  sidenet   ${ours.join(" ")}\n  llama.cpp ${theirs[i].join(" ")}`);
}
console.log(`${values.prompt.length - differing} of ${values.prompt.length} prompts agree`);
process.exit(differing === 0 ? 0 : 1);
