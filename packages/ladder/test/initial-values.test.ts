import { CpuDevice, type ParamStore, Random, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { type InitialOptions, initializeWeights } from "../src/methods/initial-values.ts";
import { initializeAdapter, makeAdapter } from "../src/methods/method.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { drawBatch } from "./tiny-model.ts";

const CONFIG = parseModelConfig({
  model_type: "llama",
  vocab_size: 200,
  hidden_size: 64,
  intermediate_size: 96,
  num_hidden_layers: 3,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  attention_bias: true,
  tie_word_embeddings: true,
});

/** Every value of a store, by name. */
async function readAll(store: ParamStore): Promise<Map<string, number[]>> {
  const values = new Map<string, number[]>();
  for (const [name, tensor] of store) values.set(name, Array.from(await tensor.read()));
  return values;
}

async function valuesOf(options?: InitialOptions): Promise<Map<string, number[]>> {
  using weights = initializeWeights(new CpuDevice(), CONFIG, options);
  return await readAll(weights);
}

const deviation = (values: readonly number[]) =>
  Math.sqrt(values.reduce((sum, value) => sum + value ** 2, 0) / values.length);

describe("initializeWeights", () => {
  it("gives every parameter of the configuration: norms 1, biases 0, matrices as wide as asked", async () => {
    const values = await valuesOf({ deviation: 0.05 });
    const specs = decoderParameters(CONFIG);
    expect([...values.keys()]).toEqual(specs.map((spec) => spec.name));
    for (const { name, kind } of specs) {
      const all = values.get(name)!;
      if (kind === "norm") expect(new Set(all), name).toEqual(new Set([1]));
      else if (kind === "bias") expect(new Set(all), name).toEqual(new Set([0]));
      else {
        // The outputs of attention and MLP are narrower by √(2 · 3 layers).
        const wanted = /(o_proj|down_proj)\.weight$/.test(name) ? 0.05 / Math.sqrt(6) : 0.05;
        expect(deviation(all) / wanted, name).toBeGreaterThan(0.95);
        expect(deviation(all) / wanted, name).toBeLessThan(1.05);
      }
    }
  });

  it("repeats by seed, and no two matrices are alike", async () => {
    const once = await valuesOf({ seed: 3 });
    expect(await valuesOf({ seed: 3 })).toEqual(once);
    const other = await valuesOf({ seed: 4 });
    const name = "model.layers.0.self_attn.q_proj.weight";
    expect(other.get(name)).not.toEqual(once.get(name));
    expect(once.get("model.layers.1.self_attn.q_proj.weight")).not.toEqual(once.get(name));
  });

  it("starts a model that finds every token about equally likely", async () => {
    const device = new CpuDevice();
    using decoder = new Decoder(CONFIG, initializeWeights(device, CONFIG));
    const batches = Array.from({ length: 4 }, (_, i) => drawBatch(new TestRandom(i), CONFIG));
    expect(await evaluateLoss(decoder, null, batches)).toBeCloseTo(Math.log(CONFIG.vocabSize), 1);
  });

  it("refuses a deviation that is no width", () => {
    for (const wrong of [0, -1, Number.NaN, Number.POSITIVE_INFINITY])
      expect(() => initializeWeights(new CpuDevice(), CONFIG, { deviation: wrong })).toThrow("L-INIT");
  });
});

describe("a new adapter", () => {
  const device = new CpuDevice();

  it("of a Ladder has rungs of 1/√d, and blocks as a decoder's of its own depth", async () => {
    using decoder = new Decoder(CONFIG, initializeWeights(device, CONFIG));
    const ladder = { reduction: 2, layers: 2, initialRung: true, fusion: "gate", seed: 1 } as const;
    using adapter = makeAdapter({ method: "ladder", ladder }, decoder, "tiny");
    const values = await readAll(adapter.parameters);
    for (const [name, all] of values) {
      if (/(layernorm|ladder\.norm)\.weight$/.test(name)) expect(new Set(all), name).toEqual(new Set([1]));
      else if (/(bias|gate|ladder\.up\.weight)$/.test(name)) expect(new Set(all), name).toEqual(new Set([0]));
      else {
        const block = /(o_proj|down_proj)\.weight$/.test(name) ? 0.02 / Math.sqrt(2 * 2) : 0.02;
        const wanted = name.includes("rungs") ? 1 / Math.sqrt(64) : block;
        expect(Math.abs(deviation(all) / wanted - 1), name).toBeLessThan(0.06);
      }
    }
    const rungs = [0, 1, 2].map((k) => String(values.get(`ladder.rungs.${k}.down.weight`)));
    expect(new Set(rungs).size).toBe(3);
  });

  it("of a Ladder ends in a norm of the size of H_L, whatever a few positions have", async () => {
    const store = initializeWeights(device, CONFIG);
    const vocabulary = store.get("model.embed_tokens.weight");
    // No block changes this stream: H_L is the embedding, with elements of ±5, or of ±4000 for a third of the tokens.
    const random = new Random(4);
    const signs = Float32Array.from({ length: vocabulary.size }, () => (random.uniform() < 0.5 ? -5 : 5));
    device.assign(
      vocabulary,
      signs.map((value, i) => (Math.floor(i / CONFIG.hiddenSize) % 3 === 0 ? 800 * value : value)),
    );
    for (const [name, tensor] of store)
      if (/(o_proj|down_proj)\.weight$/.test(name)) device.ops.fill(tensor, { value: 0 });
    using decoder = new Decoder(CONFIG, store);
    const gainOf = async (seed: number): Promise<Set<number>> => {
      const options = { method: "ladder", ladder: { reduction: 2 }, seed } as const;
      using adapter = await initializeAdapter(options, decoder, "tiny");
      return new Set(await adapter.parameters.get("ladder.norm.weight").read());
    };
    for (let seed = 0; seed < 8; seed++) expect(await gainOf(seed)).toEqual(new Set([5]));
    device.ops.fill(vocabulary, { value: 0 });
    expect(await gainOf(0)).toEqual(new Set([1])); // a stream of nothing has no size
  });

  it("of LoRA has A uniform within ±1/√in, as PEFT's, and B zero", async () => {
    using decoder = new Decoder(CONFIG, initializeWeights(device, CONFIG));
    using adapter = makeAdapter({ method: "lora", lora: { rank: 8 }, seed: 1 }, decoder, "tiny");
    const seen = new Set<string>();
    for (const [name, all] of await readAll(adapter.parameters)) {
      if (name.endsWith("lora_B.weight")) expect(new Set(all), name).toEqual(new Set([0]));
      else {
        const bound = 1 / Math.sqrt(name.includes("down_proj") ? CONFIG.intermediateSize : CONFIG.hiddenSize);
        for (const extreme of [Math.max(...all), -Math.min(...all)]) {
          expect(extreme / bound, name).toBeLessThanOrEqual(1);
          expect(extreme / bound, name).toBeGreaterThan(0.97);
        }
        expect(Math.abs((deviation(all) * Math.sqrt(3)) / bound - 1), name).toBeLessThan(0.06);
        seen.add(String(all));
      }
    }
    expect(seen.size).toBe(3 * 7);
  });
});
