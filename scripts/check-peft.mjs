// Compares LoRA and QLoRA adapters of sidenet with Python's PEFT, in both directions: each loads what the other has written,
// and the logits must be equal.
//
//   npm run build && node scripts/check-peft.mjs [--golden DIR] [--python FILE] [--keep DIR]
//
// --python is a Python with torch, transformers, peft, safetensors and bitsandbytes; without it, a temporary virtual
// environment is made (gigabytes). --golden adds the models and adapters of a folder of golden cases to the random ones. With
// --keep, the files stay in that folder. Not part of CI. docs/peft.md has its output.

import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { Decoder, encodeSafetensors, loadWeights, residualStream } from "@sidenet/ladder";
import { convertModel, openAdapter, openModel, saveAdapter } from "@sidenet/ladder/node";
import { CpuDevice } from "@sidenet/tensor";
import { ROOT } from "./lib/environment.mjs";
import { scriptOptions } from "./lib/options.mjs";
import { compareWithPython } from "./lib/python.mjs";
import { RANDOM_LLAMA, RANDOM_MODELS, randomLora, writeRandomModel } from "./lib/random-models.mjs";
import { requireSuccess, run } from "./lib/steps.mjs";

const PYTHON_HALF = join(ROOT, "scripts/check-peft.py");
const PACKAGES = ["torch", "transformers", "peft", "safetensors", "bitsandbytes"];
/** Allowed relative error of the logits (2-norm over all of them). Both programs compute in float32. */
const TOLERANCE = 1e-5;

const options = scriptOptions({ golden: null, python: null, keep: null });

const ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/** LoRA configurations in PEFT's fields, by title. */
const CONFIGS = {
  "all seven": { r: 8, lora_alpha: 16, target_modules: ALL },
  "q and v, rsLoRA": { r: 4, lora_alpha: 8, use_rslora: true, target_modules: ["q_proj", "v_proj"] },
  "patterns, two layers": {
    r: 4,
    lora_alpha: 8,
    target_modules: ALL,
    layers_to_transform: [0, 1],
    rank_pattern: { down_proj: 2, "layers.0.self_attn.q_proj": 6 },
    alpha_pattern: { v_proj: 2 },
  },
  "an expression, one excluded": {
    r: 3,
    lora_alpha: 5,
    target_modules: ".*\\.(self_attn|mlp)\\..*_proj",
    exclude_modules: ["up_proj"],
  },
};

const device = new CpuDevice();

async function openDecoder(folder) {
  const model = await openModel(folder);
  const decoder = new Decoder(model.config, await loadWeights(device, model.config, model.checkpoint));
  await model.close();
  return decoder;
}

async function logitsOf(decoder, adapter, ids) {
  const batch = { inputIds: ids.flat(), batchSize: ids.length, length: ids[0].length, attentionMask: null };
  const logits = device.scope(() =>
    decoder.logits(device.ops, residualStream(decoder, adapter, decoder.prepare(batch))),
  );
  const values = Float32Array.from(await logits.read());
  const { shape } = logits;
  logits.dispose();
  return { values, shape };
}

function writeLogits(folder, { values, shape }) {
  const file = encodeSafetensors({ logits: { dtype: "F32", shape, data: values } });
  writeFileSync(join(folder, "logits.safetensors"), Buffer.concat(file));
}

/** The logits that PEFT wrote: the only tensor of their file. */
function readLogits(folder) {
  const bytes = readFileSync(join(folder, "logits.safetensors"));
  const data = bytes.subarray(8 + Number(bytes.readBigUInt64LE(0)));
  return new Float32Array(data.buffer.slice(data.byteOffset, data.byteOffset + data.length));
}

function relative(ours, theirs) {
  let [difference, norm] = [0, 0];
  for (const [i, value] of theirs.entries()) {
    difference += (ours[i] - value) ** 2;
    norm += value ** 2;
  }
  return Math.sqrt(difference / norm);
}

const drawIds = (V, seed) =>
  [0, 1].map((row) =>
    Array.from({ length: 12 }, (_, i) => 2 + ((seed * 31 + row * 17 + i * 7 + ((i * i) % 5)) % (V - 2))),
  );

const convert = (model, output, type) =>
  convertModel(device, { model, output, type, adapter: null, maxShardBytes: 5e9, overwrite: false });

/**
 * The folder of a model for PEFT: NF4 weights are dequantized, since bitsandbytes refuses the sizes of some tiny models.
 */
async function forPeft(work, model) {
  if (!readFileSync(join(model, "config.json"), "utf8").includes("quantization_config")) return model;
  const folder = join(work, `${basename(model)}-dequantized`);
  if (!existsSync(folder)) await convert(model, folder, "f32");
  return folder;
}

/** A case of a model and a configuration: an adapter written by sidenet, and a folder for PEFT's. */
async function prepare(work, name, { model, peftModel = model, config, quantized = false }) {
  const folder = join(work, name.replaceAll(/[^\w]+/g, "-"));
  const [written, to] = [join(folder, "ours"), join(folder, "peft")];
  mkdirSync(written, { recursive: true });
  const decoder = await openDecoder(model);
  const ids = drawIds(decoder.config.vocabSize, name.length);
  const adapter = randomLora(device, config, decoder.config);
  await saveAdapter(written, adapter, { name: "tiny", config: decoder.config });
  writeLogits(written, await logitsOf(decoder, adapter, ids));
  adapter.dispose();
  decoder.dispose();
  return { name, model: peftModel, written, config, to, ids, quantized, ownModel: model };
}

/** A case of a golden adapter: PEFT loads it from its file, as sidenet does. */
async function prepareGolden(work, name, folder) {
  const { base_model_name_or_path: base } = JSON.parse(
    readFileSync(join(folder, "adapter_config.json"), "utf8"),
  );
  const model = resolve(folder, base);
  const decoder = await openDecoder(model);
  const adapter = await openAdapter(folder, device, decoder.config);
  const written = join(work, `golden-${name}`);
  mkdirSync(written, { recursive: true });
  for (const file of ["adapter_config.json", "adapter_model.safetensors"])
    copyFileSync(join(folder, file), join(written, file));
  const ids = drawIds(decoder.config.vocabSize, name.length);
  writeLogits(written, await logitsOf(decoder, adapter, ids));
  adapter.dispose();
  decoder.dispose();
  return { name: `golden adapter ${name}`, model: await forPeft(work, model), written, ids };
}

async function prepareAll(work, python) {
  const cases = [];
  for (const [family, json] of Object.entries(RANDOM_MODELS)) {
    const model = writeRandomModel(join(work, family), json);
    for (const [title, config] of Object.entries(CONFIGS)) {
      cases.push(await prepare(work, `${family}, ${title}`, { model, config }));
    }
  }
  const nf4 = join(work, "llama-quantized");
  await convert(join(work, "llama"), nf4, "nf4");
  const peftModel = await forPeft(work, nf4);
  const bitsandbytes = join(work, "bitsandbytes");
  const sizes = { hidden_size: 128, intermediate_size: 256 }; // bitsandbytes refuses smaller ones
  const source = writeRandomModel(join(work, "even"), { ...RANDOM_LLAMA, ...sizes });
  const done = run(python, [PYTHON_HALF, "--quantize", source, bitsandbytes]);
  requireSuccess(done, "bitsandbytes could not quantize a model.");
  for (const [title, config] of Object.entries(CONFIGS)) {
    cases.push(
      await prepare(work, `QLoRA, dequantized for PEFT, ${title}`, { model: nf4, peftModel, config }),
      await prepare(work, `QLoRA on bitsandbytes, ${title}`, {
        model: bitsandbytes,
        config,
        quantized: true,
      }),
    );
  }
  if (options.golden) cases.push(...(await goldenCases(work, options.golden)));
  return cases;
}

async function goldenCases(work, golden) {
  const cases = [];
  for (const name of readdirSync(join(golden, "adapters"))) {
    const folder = join(golden, "adapters", name);
    if (!readFileSync(join(folder, "adapter_config.json"), "utf8").includes('"LORA"')) continue;
    cases.push(await prepareGolden(work, name, folder));
  }
  for (const name of readdirSync(join(golden, "models"))) {
    const model = join(golden, "models", name);
    const config = CONFIGS["patterns, two layers"];
    cases.push(
      await prepare(work, `golden model ${name}`, { model, peftModel: await forPeft(work, model), config }),
    );
  }
  return cases;
}

/** The relative error of sidenet's logits with an adapter that PEFT wrote. */
async function readBack({ to, ids, ownModel }) {
  const decoder = await openDecoder(ownModel);
  const adapter = await openAdapter(to, device, decoder.config);
  const { values } = await logitsOf(decoder, adapter, ids);
  adapter.dispose();
  decoder.dispose();
  return relative(values, readLogits(to));
}

/** Compares all cases and returns the number of those that differ. */
async function compareAll(python, work) {
  const cases = await prepareAll(work, python);
  const manifest = join(work, "manifest.json");
  writeFileSync(manifest, JSON.stringify({ cases }));
  requireSuccess(run(python, [PYTHON_HALF, manifest]), "check-peft.py failed.");
  const { versions, results } = JSON.parse(readFileSync(join(work, "results.json"), "utf8"));
  const names = Object.entries(versions).map((entry) => entry.join(" "));
  console.log(names.join(", "));
  console.log(`${"relative error of logits".padEnd(58)}ours in PEFT PEFT's here`);
  const show = (error) => (error === undefined ? "-" : error.toExponential(1)).padStart(12);
  let failed = 0;
  for (const item of cases) {
    const { error, written_here: there } = results[item.name];
    const here = error || !item.to ? undefined : await readBack(item);
    const bad = error || [there, here].some((value) => value !== undefined && !(value <= TOLERANCE));
    if (bad) failed++;
    console.log(`${item.name.padEnd(58)}${show(there)}${show(here)}${bad ? `  FAILED ${error ?? ""}` : ""}`);
  }
  console.log(`${cases.length - failed} of ${cases.length} agree within ${TOLERANCE}`);
  return failed;
}

await compareWithPython(options, PACKAGES, compareAll);
