import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { type InitialOptions, initializeWeights } from "../src/methods/initial-values.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { evaluateLoss } from "../src/training/trainer.ts";
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

/** Every value of the weights, by name. */
async function valuesOf(options?: InitialOptions): Promise<Map<string, number[]>> {
  using weights = initializeWeights(new CpuDevice(), CONFIG, options);
  const values = new Map<string, number[]>();
  for (const [name, tensor] of weights) values.set(name, Array.from(await tensor.read()));
  return values;
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
