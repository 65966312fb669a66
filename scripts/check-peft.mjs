// LoRA and QLoRA adapters between sidenet and Python's PEFT, both ways: what one writes, the other loads, with equal logits.
//
//   npm run build && node scripts/check-peft.mjs [--golden DIR] [--venv DIR] [--keep]
//
// Makes a throw-away virtual environment with torch, transformers, peft and bitsandbytes (gigabytes), unless --venv names
// one that has them. --golden adds the models and adapters of a folder of golden cases to the random ones made here.
// Not part of CI. Its output is kept in docs/peft.md.

import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import {
  Decoder,
  decoderParameters,
  denseMatrix,
  encodeSafetensors,
  loadWeights,
  residualStream,
} from "@sidenet/ladder";
import { openAdapter, openModel, saveAdapter } from "@sidenet/ladder/node";
import { CpuDevice } from "@sidenet/tensor";
import { scriptOptions } from "./lib/options.mjs";
import { RANDOM_LLAMA, RANDOM_MODELS, randomLora, writeRandomModel } from "./lib/random-models.mjs";
import { reportFailure, run, SetupError } from "./lib/steps.mjs";

const HERE = fileURLToPath(new URL(".", import.meta.url));
const PYTHON_HALF = join(HERE, "check-peft.py");
const PACKAGES = ["torch", "transformers", "peft", "safetensors", "bitsandbytes"];
/** Relative error of logits, 2-norm over all: both sides compute in float32. */
const TOLERANCE = 1e-5;

const options = scriptOptions({ golden: null, venv: null, keep: false });

const ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
/** PEFT's fields, for both sides. */
const CONFIGS = {
  "all seven": { r: 8, lora_alpha: 16, target_modules: ALL },
  "q and v, rsLoRA": { r: 4, lora_alpha: 8, use_rslora: true, target_modules: ["q_proj", "v_proj"] },
  "patterns, two layers": {
    ...{ r: 4, lora_alpha: 8, target_modules: ALL, layers_to_transform: [0, 1] },
    ...{ rank_pattern: { down_proj: 2, "layers.0.self_attn.q_proj": 6 }, alpha_pattern: { v_proj: 2 } },
  },
  "an expression, one excluded": {
    ...{
      r: 3,
      lora_alpha: 5,
      target_modules: ".*\\.(self_attn|mlp)\\..*_proj",
      exclude_modules: ["up_proj"],
    },
  },
};

const device = new CpuDevice();

async function openDecoder(folder, storage = {}) {
  const model = await openModel(folder);
  const decoder = new Decoder(
    model.config,
    await loadWeights(device, model.config, model.checkpoint, storage),
  );
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

/** A safetensors file of one float32 tensor. */
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

/** The NF4 weights of a model as a checkpoint of what they stand for: for PEFT without bitsandbytes. */
async function writeDequantized(folder, from) {
  const { quantization_config: _, ...config } = JSON.parse(readFileSync(join(from, "config.json"), "utf8"));
  const decoder = await openDecoder(from, { quantizeBlocks: true });
  mkdirSync(folder, { recursive: true });
  const tensors = {};
  for (const { name, shape } of decoderParameters(decoder.config)) {
    const dense = denseMatrix(device, decoder.weights, name, shape);
    tensors[name] = { dtype: "F32", shape, data: Float32Array.from(await dense.read()) };
    dense.dispose();
  }
  writeFileSync(join(folder, "config.json"), JSON.stringify(config));
  writeFileSync(
    join(folder, "model.safetensors"),
    Buffer.concat(encodeSafetensors(tensors, { format: "pt" })),
  );
  decoder.dispose();
}

/** One pair of model and configuration: an adapter written here, and a place for PEFT's. */
async function prepare(work, name, { model, peftModel = model, storage = {}, config, quantized = false }) {
  const folder = join(work, name.replaceAll(/[^\w]+/g, "-"));
  const [written, to] = [join(folder, "ours"), join(folder, "peft")];
  mkdirSync(written, { recursive: true });
  const decoder = await openDecoder(model, storage);
  const ids = drawIds(decoder.config.vocabSize, name.length);
  const adapter = randomLora(device, config, decoder.config);
  await saveAdapter(written, adapter, { name: "tiny", config: decoder.config });
  writeLogits(written, await logitsOf(decoder, adapter, ids));
  adapter.dispose();
  decoder.dispose();
  return { name, model: peftModel, written, config, to, ids, quantized, here: { model, storage } };
}

/** A model that PEFT can load without bitsandbytes, whose kernels refuse the sizes of some tiny models. */
async function forPeft(work, model) {
  if (!readFileSync(join(model, "config.json"), "utf8").includes("quantization_config")) return model;
  const folder = join(work, `${basename(model)}-dequantized`);
  if (!existsSync(folder)) await writeDequantized(folder, model);
  return folder;
}

/** A golden adapter, as its file has it: PEFT's logits of it are compared with ours. */
async function prepareGolden(work, name, folder) {
  const { base_model_name_or_path: base } = JSON.parse(
    readFileSync(join(folder, "adapter_config.json"), "utf8"),
  );
  const model = resolve(folder, base);
  const decoder = await openDecoder(model);
  const adapter = await openAdapter(folder, device, decoder.config);
  const written = join(work, `golden-${name}`);
  mkdirSync(written, { recursive: true });
  for (const file of ["adapter_config.json", "adapter_model.safetensors"]) {
    writeFileSync(join(written, file), readFileSync(join(folder, file)));
  }
  const ids = drawIds(decoder.config.vocabSize, name.length);
  writeLogits(written, await logitsOf(decoder, adapter, ids));
  adapter.dispose();
  decoder.dispose();
  return { name: `golden adapter ${name}`, model: await forPeft(work, model), written, ids };
}

async function prepareAll(work, binary) {
  const cases = [];
  for (const [family, json] of Object.entries(RANDOM_MODELS)) {
    const model = writeRandomModel(join(work, family), json);
    for (const [title, config] of Object.entries(CONFIGS)) {
      cases.push(await prepare(work, `${family}, ${title}`, { model, config }));
    }
  }
  const peftModel = join(work, "llama-dequantized");
  await writeDequantized(peftModel, join(work, "llama"));
  const qlora = { model: join(work, "llama"), peftModel, storage: { quantizeBlocks: true } };
  const model = join(work, "bitsandbytes");
  const source = writeRandomModel(join(work, "even"), {
    ...RANDOM_LLAMA,
    hidden_size: 128,
    intermediate_size: 256,
  });
  const done = run(binary, [PYTHON_HALF, "--quantize", source, model]);
  if (done.failed) throw new SetupError("bitsandbytes failed.", `${done.failed}\n${done.output}`);
  for (const [title, config] of Object.entries(CONFIGS)) {
    cases.push(await prepare(work, `QLoRA, dequantized for PEFT, ${title}`, { ...qlora, config }));
    cases.push(await prepare(work, `QLoRA on bitsandbytes, ${title}`, { model, config, quantized: true }));
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

function python() {
  const venv = options.venv ?? mkdtempSync(join(tmpdir(), "sidenet-peft-"));
  const binary = join(venv, process.platform === "win32" ? "Scripts/python.exe" : "bin/python");
  if (!existsSync(binary)) {
    const made = run("python3", ["-m", "venv", venv]);
    if (made.failed) throw new SetupError("No virtual environment.", `${made.failed}\n${made.output}`);
  }
  if (!options.venv) {
    const installed = run(binary, ["-m", "pip", "install", "--quiet", ...PACKAGES]);
    if (installed.failed) throw new SetupError("pip failed.", `${installed.failed}\n${installed.output}`);
  }
  return { binary, discard: () => options.venv || rmSync(venv, { recursive: true, force: true }) };
}

/** What PEFT wrote, loaded here. */
async function readBack({ to, ids, here }) {
  const decoder = await openDecoder(here.model, here.storage);
  const adapter = await openAdapter(to, device, decoder.config);
  const { values } = await logitsOf(decoder, adapter, ids);
  adapter.dispose();
  decoder.dispose();
  return relative(values, readLogits(to));
}

async function main() {
  const work = mkdtempSync(join(tmpdir(), "sidenet-peft-cases-"));
  const { binary, discard } = python();
  try {
    const cases = await prepareAll(work, binary);
    const manifest = join(work, "manifest.json");
    writeFileSync(manifest, JSON.stringify({ cases }));
    const done = run(binary, [PYTHON_HALF, manifest]);
    if (!existsSync(join(work, "results.json"))) {
      throw new SetupError("The Python half failed.", `${done.failed}\n${done.output}`);
    }
    const { versions, results } = JSON.parse(readFileSync(join(work, "results.json"), "utf8"));
    console.log(
      Object.entries(versions)
        .map((entry) => entry.join(" "))
        .join(", "),
    );
    console.log(`${"relative error of logits".padEnd(58)}ours in PEFT PEFT's here`);
    let failed = 0;
    const show = (error) => (error === undefined ? "-" : error.toExponential(1)).padStart(12);
    for (const item of cases) {
      const { error, written_here: there } = results[item.name];
      const here = error || !item.to ? undefined : await readBack(item);
      const bad = error || [there, here].some((value) => value !== undefined && !(value <= TOLERANCE));
      if (bad) failed++;
      console.log(
        `${item.name.padEnd(58)}${show(there)}${show(here)}${bad ? `  FAILED ${error ?? ""}` : ""}`,
      );
    }
    console.log(`${cases.length - failed} of ${cases.length} agree within ${TOLERANCE}`);
    process.exitCode = failed === 0 ? 0 : 1;
  } finally {
    if (options.keep) console.error(`kept: ${work}`);
    else rmSync(work, { recursive: true, force: true });
    discard();
  }
}

try {
  await main();
} catch (error) {
  reportFailure(error);
}
