// Small random models of every family, written as GGUF files (F16, Q8_0, and with a LoRA merged) and read by llama.cpp:
// -log p of every token of a text, there and here. An independent check of the decoder and of what `convert` and `export`
// write.   npm run build && node scripts/compare-families.mjs [--device cpu|wasm|webgpu] [--keep DIR]
//
// Both read the same file. llama.cpp rounds activations to 16 bits where weights are F16, and to 8 where they are Q8_0;
// sidenet does not: so the bounds.

import { copyFileSync, mkdirSync } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { Decoder, loadWeights, residualStream } from "@sidenet/ladder";
import { convertModel, openModel, saveAdapter } from "@sidenet/ladder/node";
import { CpuDevice, Random } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { llamaNats, withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { RANDOM_LLAMA, RANDOM_MODELS, randomLora, writeRandomModel } from "./lib/random-models.mjs";

const BUNDLED = fileURLToPath(new URL("../packages/ladder/models/tiny-books/", import.meta.url));
const LENGTH = 96;
/** What rounded activations explain, in nats: the root mean square of the differences of a token's -log p, which are near 10. */
const BOUNDS = { f16: 0.02, q8_0: 0.25 };

const values = scriptOptions({ device: "cpu", keep: null });

/** The families with what a GGUF file needs: a tokenizer's vocabulary, and rows that are whole blocks of 32. */
const SIZES = {
  vocab_size: 2048,
  hidden_size: 128,
  intermediate_size: 224,
  bos_token_id: 0,
  eos_token_id: 0,
};
const LLAMA3 = { rope_type: "llama3", factor: 8, low_freq_factor: 1, high_freq_factor: 4 };
const MODELS = {
  ...RANDOM_MODELS,
  "llama, linear rope": { ...RANDOM_LLAMA, rope_scaling: { type: "linear", factor: 4 } },
  "llama, llama3 rope": {
    ...RANDOM_LLAMA,
    rope_theta: 5e5,
    rope_scaling: { ...LLAMA3, original_max_position_embeddings: 32 },
  },
  "llama, untied": { ...RANDOM_LLAMA, tie_word_embeddings: false },
};

async function ourNats(device, path, ids) {
  const files = await openModel(path);
  const decoder = new Decoder(files.config, await loadWeights(device, files.config, files.checkpoint));
  await files.close();
  const batch = { inputIds: ids, batchSize: 1, length: ids.length, attentionMask: null };
  const logits = device.scope(() =>
    decoder.logits(device.ops, residualStream(decoder, null, decoder.prepare(batch))),
  );
  const all = await logits.read();
  logits.dispose();
  decoder.dispose();
  const { vocabSize } = files.config;
  return ids.slice(1).map((id, t) => {
    const row = all.subarray(t * vocabSize, (t + 1) * vocabSize);
    return Math.log(row.reduce((sum, z) => sum + Math.exp(z), 0)) - row[id];
  });
}

/** A folder of PEFT's layout with a random LoRA of a model. */
async function writeLora(folder, model) {
  mkdirSync(folder, { recursive: true });
  const files = await openModel(model);
  const device = new CpuDevice();
  const fields = { r: 4, lora_alpha: 8, target_modules: ["q_proj", "v_proj", "o_proj", "down_proj"] };
  const adapter = randomLora(device, fields, files.config);
  await saveAdapter(folder, adapter, { name: model, config: files.config });
  adapter.dispose();
  await files.close();
  return folder;
}

const work = resolve(values.keep ?? (await mkdtemp(join(tmpdir(), "sidenet-families-"))));
const { device } = await openDevice(values.device);
const writer = new CpuDevice();
const common = { maxShardBytes: 5e9, overwrite: true };
let failed = 0;
try {
  for (const [name, config] of Object.entries(MODELS)) {
    const model = writeRandomModel(join(work, name.replaceAll(/\W+/g, "-")), { ...config, ...SIZES });
    for (const file of ["tokenizer.json", "tokenizer_config.json"])
      copyFileSync(join(BUNDLED, file), join(model, file));
    const adapter = await writeLora(`${model}-lora`, model);
    const random = new Random(11, 0);
    const ids = Array.from({ length: LENGTH }, () => Math.floor(random.uniform() * SIZES.vocab_size));
    for (const [what, type] of [
      ["f16", "f16"],
      ["q8_0", "q8_0"],
      ["merged f16", "f16"],
    ]) {
      const output = `${model}-${what.replace(" ", "-")}.gguf`;
      const merged = what.startsWith("merged") ? adapter : null;
      await convertModel(writer, { ...common, model, output, type, adapter: merged });
      const ours = await ourNats(device, output, ids);
      const theirs = await withLlamaModel(output, {}, (llama) => llamaNats(llama, ids));
      const mean = (list) => list.reduce((sum, x) => sum + x, 0) / list.length;
      const difference = Math.sqrt(mean(ours.map((nats, t) => (nats - theirs[t]) ** 2)));
      const isEqual = difference <= BOUNDS[type];
      if (!isEqual) failed++;
      console.log(
        `${isEqual ? "ok  " : "FAIL"} ${`${name}, ${what}`.padEnd(32)} ${mean(ours).toFixed(4)} nats here, ` +
          `${mean(theirs).toFixed(4)} in llama.cpp, ${difference.toFixed(4)} apart`,
      );
    }
  }
} finally {
  device.dispose();
  releaseDawn();
  if (values.keep === undefined) await rm(work, { recursive: true, force: true });
}
console.log(failed === 0 ? "all agree" : `${failed} disagree`);
process.exit(failed === 0 ? 0 : 1);
