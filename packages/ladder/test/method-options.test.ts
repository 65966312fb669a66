/** From flags to what is trained: sizes of side networks and of LoRA. */
import { readdirSync, readFileSync } from "node:fs";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { Command } from "commander";
import { describe, expect, it } from "vitest";
import {
  addStepOptions,
  methodOptions,
  refuseOtherMethods,
  type SizeFlags,
} from "../src/cli/method-options.ts";
import type { Method } from "../src/methods/adapter.ts";
import { ladderConfig } from "../src/methods/ladder-config.ts";
import { loraConfig, loraSites } from "../src/methods/lora-config.ts";
import { initializeAdapter, sideConfigOf } from "../src/methods/method.ts";
import { sideDepth, sideParameters } from "../src/methods/side-config.ts";
import { parameterCount } from "../src/model/block.ts";
import { type ModelConfig, parseModelConfig } from "../src/model/config.ts";
import { evaluateLoss } from "../src/training/evaluate-loss.ts";
import { defaultLearningRate } from "../src/training/method-defaults.ts";
import { Trainer } from "../src/training/trainer.ts";
import { drawBatch, drawModel, randomDecoder } from "./tiny-model.ts";

const CONFIGS = new URL("../configs/", import.meta.url);
const models = new Map<string, ModelConfig>(
  readdirSync(CONFIGS).map((name) => [
    name,
    parseModelConfig(JSON.parse(readFileSync(new URL(`${name}/config.json`, CONFIGS), "utf8"))),
  ]),
);

function optionsOf(method: Method, line: string) {
  const command = addStepOptions(new Command(), 1).exitOverride();
  command.configureOutput({ writeErr: () => {} });
  command.parse(line.split(" ").filter(Boolean), { from: "user" });
  refuseOtherMethods(command, [method]);
  return methodOptions(method, command.opts<SizeFlags>());
}

const sideOf = (method: "ladder" | "xladder", line: string, model = models.get("SmolLM2-135M")!) =>
  sideConfigOf(optionsOf(method, line), model, "m")!;

describe("an xLadder has as many parameters as the Ladder of the same reduction, within 1 %, and the backbone's form,", () => {
  it.each([...models])("beside %s, at every reduction and δ", (_name, model) => {
    const L = model.numHiddenLayers;
    for (const reduction of [4, 8, 16]) {
      const ladder = sideOf("ladder", `--reduction ${reduction}`, model);
      const wanted = parameterCount(sideParameters(ladder, model));
      for (const delta of [Math.floor(L / 4), Math.floor(L / 2)]) {
        const config = sideOf("xladder", `--reduction ${reduction} --delta ${delta}`, model);
        const count = parameterCount(sideParameters(config, model));
        expect(Math.abs(count - wanted) / wanted).toBeLessThan(0.01);
        expect(config.num_hidden_layers).toBe(2 * delta);
        expect(config.rungs).toEqual(Array.from({ length: delta }, (_, k) => L - delta + k));
        expect(sideDepth(config, model)).toBe(L + delta);
        expect(config.hidden_size).toBe(config.num_attention_heads * config.head_dim);
        const form = config.intermediate_size / config.hidden_size;
        expect(Math.abs(form / (model.intermediateSize / model.hiddenSize) - 1)).toBeLessThan(0.13);
        if (reduction < 16) expect(config.intermediate_size % 8).toBe(0); // a smaller one needs finer steps
      }
    }
  });
});

describe("the default learning rate of a side network", () => {
  it("moves y of every model and width by the same share in a head's direction", () => {
    const share = (line: string, model: ModelConfig) =>
      defaultLearningRate(optionsOf("ladder", line), model) *
      sideOf("ladder", line, model).hidden_size *
      Math.sqrt(model.hiddenSize);
    for (const model of models.values()) {
      for (const line of ["", "--reduction 4", "--side-width 64"]) {
        expect(Math.abs(share(line, model) / share("", models.get("SmolLM2-135M")!) - 1)).toBeLessThan(0.06); // two digits
      }
    }
  });

  it("is what the guide says for SmolLM2-135M", () => {
    expect(defaultLearningRate(optionsOf("ladder", ""), models.get("SmolLM2-135M")!)).toBe(9.4e-4);
  });
});

describe("flags of side networks", () => {
  it("reach the configuration", () => {
    expect(sideOf("ladder", "")).toMatchObject({
      fusion: "add",
      initial_rung: false,
      rung_norm: true,
      init: "random",
    });
    expect(sideOf("ladder", "").rungs).toEqual(Array.from({ length: 15 }, (_, k) => 2 * (k + 1)));
    expect(sideOf("xladder", "")).toMatchObject({
      rungs: [23, 24, 25, 26, 27, 28, 29],
      num_hidden_layers: 14,
    });
    expect(
      sideOf("ladder", "--fusion gate --initial-rung --no-rung-norm --init pruned --seed 7"),
    ).toMatchObject({
      fusion: "gate",
      initial_rung: true,
      rung_norm: false,
      init: "pruned",
      seed: 7,
    });
    expect(sideOf("ladder", "--rungs-at 3 9 30")).toMatchObject({ rungs: [3, 9, 30], num_hidden_layers: 3 });
    expect(sideOf("ladder", "--rungs-at 3 9 30 --layers 5").num_hidden_layers).toBe(5);
    expect(sideOf("ladder", "--rungs-at 0,9-11 30-30").rungs).toEqual([0, 9, 10, 11, 30]);
    expect(sideOf("ladder", "--side-width 96 --layers 4")).toMatchObject({
      hidden_size: 96,
      num_hidden_layers: 4,
    });
    expect(sideOf("xladder", "--side-width 96").hidden_size).toBe(96);
    expect(sideOf("xladder", "--delta 3 --layers 8 --fusion gate")).toMatchObject({
      rungs: [27, 28, 29],
      num_hidden_layers: 8,
      fusion: "gate",
    });
  });

  it("become the sizes of methods.md, and without them those of the library", () => {
    // SmolLM2-135M: d = 576, f = 1536, 9 heads.
    for (const [line, width, heads, intermediate] of [
      ["", 72, 1, 192],
      ["--reduction 1", 576, 9, 1536],
      ["--reduction 4", 144, 2, 384],
      ["--reduction 10", 58, 1, 160], // 57.6 and 153.6, rounded to an even head and up to a multiple of 8
      ["--reduction 288", 2, 1, 8],
      ["--side-width 96", 96, 1, 256],
    ] as const) {
      expect(sideOf("ladder", line), line).toMatchObject({
        hidden_size: width,
        num_attention_heads: heads,
        num_key_value_heads: heads,
        head_dim: width / heads,
        intermediate_size: intermediate,
      });
    }
    expect(ladderConfig(models.get("SmolLM2-135M")!, "m")).toEqual(sideOf("ladder", ""));
  });

  it("of the library may hold a seed of their own", () => {
    for (const method of ["ladder", "xladder"] as const) {
      const seedOf = (options: object) =>
        sideConfigOf({ method, ...options }, models.get("SmolLM2-135M")!, "m")?.seed;
      expect(seedOf({ [method]: { seed: 5 } })).toBe(5);
      expect(seedOf({ [method]: { seed: 5 }, seed: 7 })).toBe(5);
      expect(seedOf({ seed: 7 })).toBe(7);
    }
  });

  it("that would do nothing, or are not what they have to be, are refused", () => {
    for (const [method, line, message] of [
      ["ladder", "--importance fisher", /--importance says what --init pruned keeps/],
      ["xladder", "--rungs-at 1 2", /--rungs-at is for ladder, and does nothing for xladder/],
      ["lora", "--rungs-at 1 2", /--rungs-at is for ladder, and does nothing for lora/],
      ["ladder", "--delta 2", /--delta is for xladder, and does nothing for ladder/],
      ["head", "--no-rung-norm", /--no-rung-norm is for ladder or xladder, and does nothing for head/],
      ["ladder", "--reduction 4 --side-width 18", /--side-width stands in place of --reduction/],
      ["lora", "--rungs int8", /--rungs is for ladder or xladder, and does nothing for lora/],
      ["qlora", "--chunk-tokens 64", /--chunk-tokens is for ladder, xladder or head, and .* for qlora/],
      [
        "head",
        "--gradient-checkpointing",
        /^\[C-USAGE\] --gradient-checkpointing is for .* nothing for head/,
      ],
      ["head", "--no-gradient-checkpointing", /^\[C-USAGE\] --no-gradient-checkpointing is for .* for head/],
    ] as const) {
      expect(() => optionsOf(method, line)).toThrow(message);
    }
    expect(() => optionsOf("ladder", "--init pruned --importance median")).toThrow(/l1, fisher/);
    for (const range of ["5-3", "1-", "1-2-3", "one", "1.5", "1-99999999999"]) {
      expect(() => optionsOf("ladder", `--rungs-at ${range}`)).toThrow(/an index, or a range such as 21-27/);
    }
  });
});

it("flags of LoRA reach its sites", () => {
  const model = models.get("SmolLM2-135M")!;
  const { lora } = optionsOf(
    "lora",
    "--rank 4 --alpha 6 --rslora --targets q_proj v_proj --lora-layers 0 29 --dropout 0.1",
  );
  const config = loraConfig("m", lora);
  expect(config.lora_dropout).toBe(0.1);
  const sites = loraSites(config, model);
  expect(sites.map(({ layer, projection }) => `${layer} ${projection}`)).toEqual([
    "0 q",
    "0 v",
    "29 q",
    "29 v",
  ]);
  for (const { rank, scale } of sites) expect([rank, scale]).toEqual([4, 3]);
});

it("every kind of side network trains from flags alone, and starts as its backbone", async () => {
  const device = new CpuDevice();
  const pick = new TestRandom(21);
  const model = { ...drawModel(pick), numHiddenLayers: 4 };
  using decoder = randomDecoder(device, model);
  const batch = drawBatch(pick, model);
  for (const line of [
    "--reduction 2 --fusion gate --initial-rung",
    "--reduction 2 --rungs-at 0 2 4 --no-rung-norm",
    "--reduction 2 --init pruned --importance fisher",
  ]) {
    using adapter = await initializeAdapter(optionsOf("ladder", line), decoder, "tiny", () => [batch]);
    const frozen = await evaluateLoss(decoder, null, [batch]);
    expect(await evaluateLoss(decoder, adapter, [batch])).toBe(frozen);
    using trainer = new Trainer(decoder, adapter, { learningRate: () => 0.01 });
    for (let step = 0; step < 4; step++) await trainer.step(batch);
    expect(await evaluateLoss(decoder, adapter, [batch])).toBeLessThan(frozen);
  }
});
