// LoRA: which layers it adapts, by the rules of PEFT, and when its dropout draws.
import { CpuDevice, type Device, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { loraConfig, loraSites, parseLoraConfig, peftConfigJson } from "../src/methods/lora-config.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

describe("an adapter_config.json of PEFT", () => {
  const model = { ...drawModel(new TestRandom(2)), numHiddenLayers: 3 };
  const config = (fields: object) =>
    parseLoraConfig(
      { peft_type: "LORA", r: 8, lora_alpha: 16, target_modules: ["q_proj"], ...fields },
      "the file",
    );

  it.each<[string, object, string[]]>([
    ["the end of a name", { target_modules: ["self_attn.q_proj"] }, ["0 q", "1 q", "2 q"]],
    ["several", { target_modules: ["up_proj", "k_proj"] }, ["0 k", "0 up", "1 k", "1 up", "2 k", "2 up"]],
    [
      "one expression for whole names",
      { target_modules: ".*\\.[02]\\.mlp\\.(up|down)_proj" },
      ["0 up", "0 down", "2 up", "2 down"],
    ],
    [
      "all linear layers, in one block",
      { target_modules: "all-linear", layers_to_transform: 1 },
      ["1 q", "1 k", "1 v", "1 o", "1 gate", "1 up", "1 down"],
    ],
    [
      "all but the excluded",
      { target_modules: ["q_proj", "v_proj"], exclude_modules: ["layers.1.self_attn.q_proj", "v_proj"] },
      ["0 q", "2 q"],
    ],
    ["all but one expression", { exclude_modules: "model\\.layers\\.[01]\\..*" }, ["2 q"]],
    ["every block, for an empty list of them", { layers_to_transform: [] }, ["0 q", "1 q", "2 q"]],
    [
      "a full name, whatever the list of blocks",
      { target_modules: ["model.layers.2.self_attn.q_proj", "v_proj"], layers_to_transform: [1] },
      ["1 v", "2 q"],
    ],
  ])("adapts the layers that PEFT would: %s", (_, fields, wanted) => {
    const sites = loraSites(config(fields), model);
    expect(sites.map(({ layer, projection }) => `${layer} ${projection}`)).toEqual(wanted);
  });

  it("gives single layers the rank and the scale of the first pattern that ends their name", () => {
    const sites = (fields: object) =>
      loraSites(
        config({ target_modules: ["q_proj", "v_proj"], layers_to_transform: [0, 1], ...fields }),
        model,
      );
    const patterns = {
      rank_pattern: { "layers.0.self_attn.q_proj": 2, "[qk]_proj": 4, proj: 3, "layers.1": 3 },
      alpha_pattern: { "1\\..*_proj": 12 },
    };
    const scales = (fields: object) => sites(fields).map(({ rank, scale }) => [rank, scale]);
    expect(scales(patterns)).toEqual([
      [2, 16 / 2],
      [8, 16 / 8],
      [4, 12 / 4],
      [8, 12 / 8],
    ]);
    expect(scales({ ...patterns, use_rslora: true })).toEqual([
      [2, 16 / Math.sqrt(2)],
      [8, 16 / Math.sqrt(8)],
      [4, 12 / 2],
      [8, 12 / Math.sqrt(8)],
    ]);
  });

  it("is, without options, of rank 16 and scale 2 over all linear layers of the model that it names", () => {
    const plain = loraConfig("a/model");
    expect(plain.base_model_name_or_path).toBe("a/model");
    const sites = loraSites(plain, model);
    expect(sites.length).toBe(3 * 7);
    for (const { rank, scale } of sites) expect([rank, scale]).toEqual([16, 2]);
    expect(loraSites(loraConfig("m", { rank: 4 }), model)[0].scale).toBe(2);
  });

  it("with a feature that changes the mathematics is refused by its name, and read where the feature is off", () => {
    for (const field of [
      { use_dora: true },
      { bias: "all" },
      { fan_in_fan_out: true },
      { modules_to_save: ["lm_head"] },
      { layer_replication: [[0, 2]] },
      { init_lora_weights: "pissa" },
      { of_a_later_version: 2 },
    ]) {
      const [name] = Object.keys(field);
      expect(() => config(field)).toThrow(expect.objectContaining({ code: "L-ADAPTER-CONFIG" }));
      expect(() => config(field)).toThrow(name);
    }
    const off = {
      use_dora: false,
      bias: "none",
      modules_to_save: null,
      layer_replication: [],
      init_lora_weights: "gaussian",
      of_a_later_version: {},
      task_type: "CAUSAL_LM",
      peft_version: "0.18.0",
    };
    expect(config(off)).toEqual(config({}));
    expect(config(peftConfigJson(config({ r: 2, rank_pattern: { q_proj: 1 } })))).toEqual(
      config({ r: 2, rank_pattern: { q_proj: 1 } }),
    );
  });
});

describe("dropout", () => {
  const model = { ...drawModel(new TestRandom(2)), numHiddenLayers: 2 };
  const batch = drawBatch(new TestRandom(3), model);

  /** Losses of three steps that change nothing, and the loss without dropout. B is not zero here, or dropout would not show. */
  async function losses(
    device: Device,
    dropout: number,
    seed = 0,
  ): Promise<[steps: number[], alone: number]> {
    using decoder = randomDecoder(device, model);
    using adapter = makeAdapter({ method: "lora", lora: { rank: 4, dropout }, seed }, decoder, "tiny");
    const pick = new TestRandom(5);
    for (const [, parameter] of adapter.parameters)
      device.assign(parameter, pick.normals(parameter.size, 0.3));
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0, weightDecay: 0 });
    const steps: number[] = [];
    for (let step = 0; step < 3; step++) steps.push((await trainer.step(batch)).loss);
    return [steps, await evaluateLoss(decoder, adapter, [batch])];
  }

  it("draws anew in every training pass, by seed, and in no other pass", async () => {
    const device = new CpuDevice();
    const [plain, alone] = await losses(device, 0);
    expect(plain).toEqual([alone, alone, alone]);
    const [dropped, aloneToo] = await losses(device, 0.5);
    expect(aloneToo).toBe(alone);
    expect(new Set([...dropped, alone]).size).toBe(4);
    expect((await losses(device, 0.5))[0]).toEqual(dropped);
    expect(new Set([...(await losses(device, 0.5, 1))[0], ...dropped]).size).toBe(6);
  });
});
