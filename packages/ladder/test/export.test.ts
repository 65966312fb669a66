import { mkdir, readdir, readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, ParamStore, sizeOf, TestRandom } from "@sidenet/tensor";
import { beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import type { Adapter } from "../src/methods/adapter.ts";
import { FullTuning } from "../src/methods/full-tuning.ts";
import { HeadTuning, headParameters } from "../src/methods/head-tuning.ts";
import { ladderConfig } from "../src/methods/ladder-config.ts";
import { Lora, loraParameters } from "../src/methods/lora.ts";
import { type LoraOptions, loraConfig } from "../src/methods/lora-config.ts";
import { residualStream } from "../src/methods/residual-stream.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import type { ParameterSpec } from "../src/model/block.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { Decoder } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { openAdapter, readBackboneSetup, saveAdapter } from "../src/node/adapter-files.ts";
import { openModel } from "../src/node/open-model.ts";
import { expectPeak, sidenet } from "./capture.ts";
import { errorOf } from "./code-of.ts";
import { contentOf, convert, drawWeights, MODEL, putModel } from "./model-folder.ts";

const device = new CpuDevice();
let folder: string;
beforeEach(() => {
  folder = temporaryFolder();
});

const at = (...parts: string[]): string => join(folder, ...parts);

/** Logits of a model on disk for some ids, and with the adapter of a folder. */
async function logitsOf(path: string, adapterFolder?: string): Promise<Float32Array> {
  const on = new CpuDevice({ precision: "f64" });
  const model = await openModel(path);
  const weights = await loadWeights(on, model.config, model.checkpoint);
  await model.close();
  using decoder = new Decoder(model.config, weights);
  using adapter = adapterFolder === undefined ? null : await openAdapter(adapterFolder, on, model.config);
  const batch = { inputIds: [1, 5, 3, 7, 2, 9], batchSize: 1, length: 6, attentionMask: null };
  using logits = on.scope(() => {
    const y = residualStream(decoder, adapter, decoder.prepare(batch));
    return decoder.logits(on.ops, y, adapter?.head ?? decoder.head);
  });
  return Float32Array.from(await logits.read());
}

/** ‖a - b‖ / ‖b‖ */
function distance(a: Float32Array, b: Float32Array): number {
  const norm = (values: Float32Array) => Math.hypot(...values);
  return norm(a.map((value, i) => value - b[i])) / norm(b);
}

/** Random values for every parameter. */
function drawParameters(specs: readonly ParameterSpec[]): ParamStore {
  const pick = new TestRandom(4);
  const store = new ParamStore(device, "adapter");
  for (const { name, shape } of specs) {
    store.add(name, device.tensor(pick.normals(sizeOf(shape), 0.2), shape, { category: "adapter" }));
  }
  return store;
}

async function putAdapter(path: string, adapter: Adapter, config: ModelConfig): Promise<string> {
  await mkdir(path);
  await saveAdapter(path, adapter, { name: "base", config });
  return path;
}

const aLora = (config: ModelConfig, options: LoraOptions = {}): Lora => {
  const lora = loraConfig("base", { rank: 3, alpha: 5, ...options });
  return new Lora(lora, config, drawParameters(loraParameters(lora, config)));
};

describe("a LoRA merged into its model", () => {
  it.each(["llama", "qwen3"] as const)(
    "gives the adapter's logits, from a folder and from a GGUF (%s)",
    async (family) => {
      const config: ModelConfig = {
        ...MODEL,
        family,
        qkNorm: family === "qwen3",
        mlpBias: family === "llama",
      };
      const source = await putModel(at("m"), config);
      using lora = aLora(config, { rsLora: true });
      const adapter = await putAdapter(at("a"), lora, config);
      const wanted = await logitsOf(source, adapter);
      expect(distance(await logitsOf(source), wanted)).toBeGreaterThan(0.05);
      await convert(source, at("f32"), "f32", { adapter });
      expect(distance(await logitsOf(at("f32")), wanted)).toBeLessThan(1e-6);
      await convert(source, at("f32.gguf"), "f32", { adapter });
      expect(distance(await logitsOf(at("f32.gguf")), wanted)).toBeLessThan(1e-6);
      const summary = await convert(source, at("f16"), "f16", { adapter });
      expect(distance(await logitsOf(at("f16")), wanted)).toBeLessThan(2e-3);
      expect(summary.warnings).toEqual([]);
    },
  );

  it("warns when the base was in 4 bits, and computes what adapter and base did", async () => {
    const source = await putModel(at("m"), MODEL);
    await convert(source, at("nf4"), "nf4");
    using lora = aLora(MODEL, { targets: ["q_proj", "down_proj"] });
    const adapter = await putAdapter(at("a"), lora, MODEL);
    const { warnings } = await convert(at("nf4"), at("f32"), "f32", { adapter });
    expect(warnings.join()).toMatch(/quantized \(NF4\).*merged into what its weights were rounded to/);
    expect(distance(await logitsOf(at("f32")), await logitsOf(at("nf4"), adapter))).toBeLessThan(1e-6);
  });

  it("is what a trained head becomes too: the model then has one of its own", async () => {
    const config = { ...MODEL, tieWordEmbeddings: true };
    const source = await putModel(at("m"), config);
    using head = new HeadTuning(config, drawParameters(headParameters(config)));
    const adapter = await putAdapter(at("a"), head, config);
    await convert(source, at("f32"), "f32", { adapter });
    expect((await contentOf(at("f32"))).config.tieWordEmbeddings).toBe(false);
    expect(distance(await logitsOf(at("f32")), await logitsOf(source, adapter))).toBeLessThan(1e-6);
  });

  it("is the model itself where all weights were trained, which is no adapter beside one", async () => {
    const source = await putModel(at("m"), MODEL);
    const trained = await putModel(at("t"), MODEL, "F32", drawWeights(MODEL, "F32", 9));
    const opened = await openModel(trained);
    using decoder = new Decoder(MODEL, await loadWeights(device, MODEL, opened.checkpoint));
    await opened.close();
    const adapter = await putAdapter(at("a"), new FullTuning(decoder), MODEL);
    await convert(source, at("f32"), "f32", { adapter });
    expect(await logitsOf(at("f32"))).toEqual(await logitsOf(trained));
    const error = await errorOf(openAdapter(adapter, device, MODEL));
    expect(error.code).toBe("L-FULL");
    expect(error.message).toMatch(/sidenet export.*give that output to --model/);
    const other = await putModel(at("other"), { ...MODEL, numHiddenLayers: 1 });
    expect((await errorOf(convert(other, at("o"), "f32", { adapter }))).code).toBe("L-ADAPTER-MODEL");
  });

  it("is refused for a side network, and for another model", async () => {
    const source = await putModel(at("m"), MODEL);
    using side = SideNetwork.initialize(device, ladderConfig(MODEL, "base", { reduction: 2 }), MODEL);
    const adapter = await putAdapter(at("a"), side, MODEL);
    const error = await errorOf(convert(source, at("out"), "f16", { adapter }));
    expect(error.code).toBe("L-MERGE");
    expect(error.message).toContain("docs/adapter-format.md");
    const other = await putModel(at("other"), { ...MODEL, numHiddenLayers: 1 });
    using lora = aLora(MODEL);
    const lower = await putAdapter(at("lora"), lora, MODEL);
    expect((await errorOf(convert(other, at("out"), "f16", { adapter: lower }))).code).toBe(
      "L-ADAPTER-MODEL",
    );
    expect((await readdir(folder)).sort()).toEqual(["a", "lora", "m", "other"]);
  });
});

describe("sidenet convert and export", () => {
  it("print one JSON object, name what is missing, and write adapters in the type asked for", async () => {
    const source = await putModel(at("m"), MODEL);
    const run = await sidenet(
      "convert",
      "--model",
      source,
      "--output",
      at("c.gguf"),
      "--dtype",
      "f32",
      "--json",
    );
    expect(run.exitCode).toBe(0);
    expect(run.json()).toMatchObject({
      model: source,
      format: "gguf",
      dtype: "f32",
      size_bytes: (await stat(at("c.gguf"))).size,
      files: ["c.gguf"],
      warnings: [],
    });
    expect(String(run.json().missing)).toContain("tokenizer");
    using lora = aLora(MODEL);
    const adapter = await putAdapter(at("a"), lora, MODEL);
    const common = ["--model", source, "--adapter", adapter, "--device", "cpu", "--json"];
    const merged = await sidenet("export", ...common, "--output", at("merged"), "--dtype", "f32");
    expect(merged.json()).toMatchObject({ format: "safetensors", parameters: expect.any(Number) });
    expectPeak(merged.json());
    expect(distance(await logitsOf(at("merged")), await logitsOf(source, adapter))).toBeLessThan(1e-6);
    const alone = await sidenet(
      "export",
      ...common,
      "--output",
      at("peft"),
      "--as",
      "adapter",
      "--dtype",
      "bf16",
    );
    expectPeak(alone.json());
    expect(alone.json()).toMatchObject({
      model: source,
      format: "adapter",
      kind: "peft",
      method: "lora",
      dtype: "bf16",
    });
    expect(JSON.parse(await readFile(at("peft", "adapter_config.json"), "utf8"))).toMatchObject({
      peft_type: "LORA",
      base_model_name_or_path: "base",
    });
    expect(distance(await logitsOf(source, at("peft")), await logitsOf(source, adapter))).toBeLessThan(0.02);
    // Inference stores the model as the adapter's was in training, so that is kept too.
    for (const quantized of [true, false]) {
      await saveAdapter(adapter, lora, { name: "base", config: MODEL, quantized });
      const flags = ["--output", at("kept"), "--as", "adapter", "--overwrite"];
      expect((await sidenet("export", ...common, ...flags)).exitCode).toBe(0);
      expect((await readBackboneSetup(at("kept"))).quantized).toBe(quantized);
    }
    const wrong = await sidenet(
      "export",
      ...common,
      "--output",
      at("y"),
      "--as",
      "adapter",
      "--dtype",
      "nf4",
    );
    expect(wrong).toMatchObject({ exitCode: 2 });
    expect(
      (await sidenet("convert", "--model", source, "--output", at("z"), "--max-shard", "big")).exitCode,
    ).toBe(2);
    for (const [command, one] of [
      [["convert", "--model", source, "--output", at("z.gguf")], "a GGUF file"],
      [["export", ...common, "--output", at("z"), "--as", "adapter"], "an adapter"],
    ] as const) {
      const whole = await sidenet(...command, "--max-shard", "1MB");
      expect(whole.exitCode).toBe(2);
      expect(whole.err).toContain(`--max-shard splits a model's folder, and ${one} is one file`);
    }
  });
});
