// Compares -log p of every token of a text with llama.cpp's, for small random models of every family as GGUF files (F16,
// Q8_0, and F16 with a merged LoRA): an independent check of the decoder and of what `convert` and `export` write.
//
//   npm run build && node scripts/compare-families.mjs [--device cpu|wasm|webgpu] [--keep DIR]
//
// Both programs read the same file. llama.cpp rounds activations to 16 bits if weights are F16 and to 8 bits if they are
// Q8_0, and sidenet does not; the bounds allow for that. With --keep the files stay in that folder.

import { mkdirSync } from "node:fs";
import { Decoder, loadWeights, residualStream } from "@sidenet/ladder";
import { convertModel, openModel, saveAdapter } from "@sidenet/ladder/node";
import { CpuDevice, Random } from "@sidenet/tensor";
import { openDevice, releaseDawn } from "@sidenet/tensor/node";
import { llamaNats, withLlamaModel } from "./lib/llama-cpp.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { randomLora, TEXT_MODELS, TEXT_SIZES, writeTextModel } from "./lib/random-models.mjs";
import { withFolder } from "./lib/work-folder.mjs";

const LENGTH = 96;
/** Bounds of the root mean square difference in nats, by the file's type. A token's -log p is near 10. */
const BOUNDS = { f16: 0.02, q8_0: 0.25 };

const values = scriptOptions({ device: "cpu", keep: null });

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

/** Writes a random LoRA of a model in PEFT's format, and returns its folder. */
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

const mean = (list) => list.reduce((sum, x) => sum + x, 0) / list.length;

/** Writes one file of a model, and returns whether both programs compute the same from it. */
async function compareFile(device, name, ids, { what, type, ...conversion }) {
  await convertModel(new CpuDevice(), { maxShardBytes: 5e9, overwrite: true, type, ...conversion });
  const ours = await ourNats(device, conversion.output, ids);
  const theirs = await withLlamaModel(conversion.output, {}, (llama) => llamaNats(llama, ids));
  const difference = Math.sqrt(mean(ours.map((nats, t) => (nats - theirs[t]) ** 2)));
  const isEqual = difference <= BOUNDS[type];
  console.log(
    `${isEqual ? "ok  " : "FAIL"} ${`${name}, ${what}`.padEnd(32)} ${mean(ours).toFixed(4)} nats here, ` +
      `${mean(theirs).toFixed(4)} in llama.cpp, difference ${difference.toFixed(4)}`,
  );
  return isEqual;
}

async function compareModel(device, folder, name) {
  const model = writeTextModel(folder, name);
  const lora = await writeLora(`${model}-lora`, model);
  const random = new Random(11, 0);
  const ids = Array.from({ length: LENGTH }, () => Math.floor(random.uniform() * TEXT_SIZES.vocab_size));
  let differing = 0;
  for (const [what, type, adapter] of [
    ["f16", "f16", null],
    ["q8_0", "q8_0", null],
    ["merged f16", "f16", lora],
  ]) {
    const output = `${model}-${what.replace(" ", "-")}.gguf`;
    if (!(await compareFile(device, name, ids, { what, type, model, output, adapter }))) differing++;
  }
  return differing;
}

const { device } = await openDevice(values.device);
let differing = 0;
await withFolder(values.keep, async (folder) => {
  for (const name of Object.keys(TEXT_MODELS)) differing += await compareModel(device, folder, name);
});
device.dispose();
releaseDawn();
console.log(differing === 0 ? "all agree" : `${differing} differ`);
process.exit(differing === 0 ? 0 : 1);
