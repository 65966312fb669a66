/** What a method cannot do is refused by name, before anything is trained. */
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, ParamStore, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { memorySource } from "../src/formats/byte-source.ts";
import { openSafetensors } from "../src/formats/safetensors.ts";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { ladderConfig, xladderConfig } from "../src/methods/ladder-config.ts";
import { Lora } from "../src/methods/lora.ts";
import { loraConfig, loraSites, parseLoraConfig } from "../src/methods/lora-config.ts";
import { initializeAdapter, makeAdapter } from "../src/methods/method.ts";
import { checkSideConfig, parseSideConfig, sideDepth } from "../src/methods/side-config.ts";
import { SideNetwork } from "../src/methods/side-network.ts";
import type { ModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { quantizeNf4 } from "../src/model/nf4-weight.ts";
import { openAdapter, saveAdapter } from "../src/node/adapter-files.ts";
import { sidenet } from "./capture.ts";
import { f32, type TensorFile } from "./golden-cases.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const model: ModelConfig = {
  ...drawModel(new TestRandom(7)),
  hiddenSize: 48,
  intermediateSize: 64,
  numAttentionHeads: 6,
  numKeyValueHeads: 3,
  numHiddenLayers: 8,
};

describe("a side network is refused", () => {
  const xladder = (options: object) => () => xladderConfig(model, "m", options);
  const ladder = (options: object) => () => ladderConfig(model, "m", options);
  const written = (change: object) => () => {
    const config = { ...ladderConfig(model, "m", { layers: 3 }), ...change };
    checkSideConfig(parseSideConfig(config, "adapter_config.json"), model);
  };
  const cases: [title: string, make: () => unknown, message: RegExp][] = [
    [
      "with δ past the backbone's depth",
      xladder({ delta: 9 }),
      /delta: 9 is not a whole number from 1 to L = 8/,
    ],
    ["with fewer side layers than δ", xladder({ delta: 4, layers: 3 }), /layers: 3 are fewer than δ = 4/],
    [
      "with rungs by hand for an xLadder",
      xladder({ rungs: [1, 2] }),
      /rungs: those of an xLadder are the inputs of the top δ layers/,
    ],
    [
      "with more layers than hidden states",
      ladder({ layers: 9 }),
      /layers: 9 is not a whole number from 1 to L = 8/,
    ],
    ["with a rung out of range", ladder({ rungs: [2, 9] }), /rungs: 9 is not .* 0 to L = 8/],
    ["with a rung that is no index", ladder({ rungs: [1.5] }), /rungs: 1.5 is not/],
    ["with descending rungs", ladder({ rungs: [4, 2] }), /rungs: 2 comes after 4/],
    [
      "with more rungs than layers",
      ladder({ rungs: [1, 2, 3], layers: 2 }),
      /rungs: 3 of them are more than the 2 side layers/,
    ],
    [
      "with no rung at all",
      ladder({ rungs: [], layers: 2 }),
      /rungs: a side network without any has no input/,
    ],
    ["with no width", ladder({ width: 0 }), /width: 0 is not a whole number from 1 to 48/],
    ["with more width than the backbone", ladder({ width: 54 }), /width: 54 is not .* 1 to 48/],
    [
      "with a width that its heads do not divide",
      ladder({ width: 26 }),
      /width: 26 does not divide into 3 heads .* multiple of 6/,
    ],
    [
      "with a reduction that leaves no pair for rope",
      ladder({ reduction: 100 }),
      /reduction: 100 leaves a side width of 0.5 .* at most 24/,
    ],
    ["with a reduction below 1", ladder({ reduction: 0.5 }), /reduction: 0.5 is not 1 or more/],
    ["from a file whose rung is out of range", written({ rungs: [1, 2, 99] }), /rungs: 99 is past/],
    ["from a file whose rungs descend", written({ rungs: [3, 1, 2] }), /comes after 3/],
    ["from a file with an odd head", written({ head_dim: 3 }), /head_dim: 3 is odd/],
    [
      "from a file whose heads do not divide",
      written({ num_key_value_heads: 4, num_attention_heads: 6 }),
      /num_attention_heads: 6 is not a multiple of .* 4/,
    ],
  ];
  it.each(cases)("%s", (_title, make, message) => {
    expect(make).toThrow(expect.objectContaining({ code: "L-ADAPTER-CONFIG" }));
    expect(make).toThrow(message);
  });
});

it("an adapter is refused by name for an unknown method, which became LoRA, and for arguments of other types", async () => {
  const device = new CpuDevice();
  using decoder = randomDecoder(device, model);
  const make = (...args: unknown[]) => makeAdapter(...(args as Parameters<typeof makeAdapter>));
  const calls: [args: unknown[], message: RegExp][] = [
    [[{ method: "lader" }, decoder, "m"], /there is no method "lader", only ladder, xladder, lora/],
    [["ladder", decoder, "m"], /there is no method "undefined"/],
    [[decoder, { method: "ladder" }, "m"], /there is no method "undefined"/],
    [[{ method: "ladder" }, null, "m"], /the second argument is not a Decoder/],
    [[{ method: "ladder" }, decoder], /the name of the base model is undefined/],
  ];
  for (const [args, message] of calls) {
    expect(() => make(...args)).toThrow(expect.objectContaining({ code: "L-OPTION" }));
    expect(() => make(...args)).toThrow(message);
    const initialize = initializeAdapter(...(args as Parameters<typeof initializeAdapter>));
    await expect(initialize).rejects.toThrow(message);
  }
});

describe("effective depth", () => {
  it("is L + δ for an xLadder of l = 2 δ layers, and L + 1 for a Ladder up to the last hidden state", () => {
    for (let delta = 1; delta <= 8; delta++) {
      expect(sideDepth(xladderConfig(model, "m", { delta }), model)).toBe(8 + delta);
    }
    expect(sideDepth(ladderConfig(model, "m", { layers: 8 }), model)).toBe(9);
  });

  it("is the longest chain of blocks from tokens to logits, for rungs anywhere", () => {
    for (let seed = 0; seed < 50; seed++) {
      const pick = new TestRandom(seed);
      const layers = pick.int(1, 6);
      const rungs = Array.from({ length: pick.int(1, layers) }, () => pick.int(0, 8)).sort((a, b) => a - b);
      // s_k comes after s_{k-1}, and after the t_k blocks that its rung reads.
      let longest = 0;
      for (let k = 0; k < layers; k++) longest = Math.max(longest, rungs[k] ?? 0) + 1;
      const config = ladderConfig(model, "m", { rungs, layers });
      expect(sideDepth(config, model)).toBe(Math.max(8, longest));
    }
  });
});

describe("LoRA is refused", () => {
  const sites = (options: object) => () => loraSites(loraConfig("m", options), model);
  const cases: [title: string, make: () => unknown, message: RegExp][] = [
    ["with rank 0", sites({ rank: 0 }), /rank: Too small/],
    ["with a broken rank", sites({ rank: 1.5 }), /rank: /],
    ["with rank 0 for one layer", sites({ rankPattern: { q_proj: 0 } }), /rankPattern: q_proj: Too small/],
    [
      "with a broken rank for one layer",
      sites({ rankPattern: { q_proj: 2.5 } }),
      /rank 2.5 .* is not a whole number/,
    ],
    ["with alpha 0", sites({ alpha: 0 }), /alpha: Too small/],
    ["with dropout of everything", sites({ dropout: 1 }), /dropout: Too big/],
    ["for a layer that is no linear one", sites({ targets: ["lm_head"] }), /"lm_head" is not a linear layer/],
    [
      "for a layer that is no linear one beside one that is",
      sites({ targets: ["q_proj", "lm_head"] }),
      /"lm_head" is not a linear layer/,
    ],
    ["for no layer", sites({ targets: [] }), /\[\] leaves nothing to train/],
    ["for a block past the last", sites({ layers: [8] }), /layer 8 is past the last of 8/],
    ["for no block", sites({ layers: [] }), /layers: no block is named/],
    // JavaScript would read {,1} and \Z as text, and the layer would silently have another alpha than in PEFT.
    [
      "with an expression that only Python reads so",
      sites({ alphaPattern: { "layers\\.\\d{,1}\\.self_attn\\.q_proj": 4 } }),
      /alpha_pattern: .* is not a regular expression/,
    ],
    [
      "with an expression that may never end",
      sites({ rankPattern: { "(a+)+": 4 } }),
      /rank_pattern: .* may never end/,
    ],
    ["with an escape that only Python knows", sites({ alphaPattern: { "q_proj\\Z": 4 } }), /alpha_pattern: /],
  ];
  it.each(cases)("%s", (_title, make, message) => {
    expect(make).toThrow(expect.objectContaining({ code: "L-ADAPTER-CONFIG" }));
    expect(make).toThrow(message);
  });
});

describe("what is refused is called", () => {
  /** What a value is called in a file, as an option and as a flag; each is out of range for the model. */
  const wrong: [file: object, field: string, options: object, option: string, flags: string, flag: string][] = [
    [{ layers_to_transform: [8] }, "layers_to_transform: layer 8", { layers: [8] }, "lora.layers", "--lora-layers 8", "--lora-layers"],
    [{ target_modules: ["lm_head"] }, 'target_modules: "lm_head"', { targets: ["lm_head"] }, "lora.targets", "--targets lm_head", "--targets"],
    [{ r: 0 }, "r: Too small", { rank: 0 }, "lora.rank", "", ""],
    [{ lora_alpha: -1 }, "lora_alpha: Too small", { alpha: -1 }, "lora.alpha", "", ""],
    [{ lora_dropout: 1 }, "lora_dropout: Too big", { dropout: 1 }, "lora.dropout", "", ""],
    [{ use_rslora: 3 }, "use_rslora: Invalid", { rsLora: 3 }, "lora.rsLora", "", ""],
    [{ rank_pattern: { q_proj: 1.5 } }, "rank_pattern: rank 1.5", { rankPattern: { q_proj: 1.5 } }, "lora.rankPattern", "", ""],
    [{ alpha_pattern: { "(a+)+": 1 } }, "alpha_pattern: matching", { alphaPattern: { "(a+)+": 1 } }, "lora.alphaPattern", "", ""],
  ]; // biome-ignore format: a line a value
  const peft = { peft_type: "LORA", r: 2, lora_alpha: 4, target_modules: ["q_proj"] };

  it.each(wrong)("as in PEFT's file: %o", (file, field) => {
    const make = () => loraSites(parseLoraConfig({ ...peft, ...file }, "adapter_config.json"), model);
    expect(make).toThrow(expect.objectContaining({ code: "L-ADAPTER-CONFIG" }));
    expect(make).toThrow(field);
  });

  it.each(wrong)(
    "as the option of the library, where it comes from one: not %o",
    (_file, _field, lora, option) => {
      using decoder = randomDecoder(new CpuDevice(), model);
      const make = () => makeAdapter({ method: "lora", lora }, decoder, "m");
      expect(make).toThrow(expect.objectContaining({ code: "L-OPTION" }));
      expect(make).toThrow(`[L-OPTION] ${option}: `);
    },
  );

  const L = 30; // of SmolLM2-135M
  it.each([
    ...wrong
      .filter(([, , , , flags]) => flags !== "")
      .map(([, , , , flags, flag]) => ["lora", flags.replace("8", `${L}`), flag]),
    ["ladder", `--layers ${L + 1}`, "--layers"],
    ["ladder", `--rungs-at 2 ${L + 1}`, "--rungs-at"],
    ["ladder", "--rungs-at 4 2", "--rungs-at"],
    ["ladder", "--rungs-at 1 2 3 --layers 2", "--rungs-at"],
    ["ladder", "--side-width 27", "--side-width"],
    ["ladder", "--reduction 1000", "--reduction"],
    ["xladder", `--delta ${L + 1}`, "--delta"],
    ["xladder", "--delta 4 --layers 3", "--layers"],
    ["xladder", "--layers 1 --side-width 96", "--layers"],
  ])("as the flag, where it was typed: %s %s", async (method, flags, flag) => {
    const args = ["--model", "SmolLM2-135M", "--method", method, ...flags.split(" "), "--context", "32"];
    const run = await sidenet("plan", ...args, "--json");
    expect(run.exitCode).toBe(2);
    expect(run.err).toContain(`[L-OPTION] ${flag}: `);
    const { error } = run.json() as { error: { message: string } };
    expect(error.message.startsWith(`${flag}: `)).toBe(true);
  });
});

describe("an adapter of another model is refused, whichever of them is given", () => {
  const others: [string, Partial<ModelConfig>][] = [
    ["deeper", { numHiddenLayers: 9 }],
    ["shallower", { numHiddenLayers: 7 }],
    ["wider", { hiddenSize: 64 }],
    ["of another family", { family: "mistral" }],
  ];
  const methods = ["ladder", "lora"] as const;
  const saved = async (method: (typeof methods)[number], device: CpuDevice): Promise<string> => {
    const folder = temporaryFolder();
    using adapter =
      method === "ladder"
        ? SideNetwork.initialize(device, ladderConfig(model, "m"), model)
        : Lora.initialize(device, loraConfig("m", { rank: 2 }), model);
    await saveAdapter(folder, adapter, { name: "m", config: model });
    return folder;
  };

  it.each(methods)("a %s by its metadata", async (method) => {
    const device = new CpuDevice();
    const folder = await saved(method, device);
    for (const [title, change] of others) {
      await expect(openAdapter(folder, device, { ...model, ...change }), title).rejects.toMatchObject({
        code: "L-ADAPTER-MODEL",
      });
    }
    expect(device.memory.liveCount).toBe(0);
  });

  it("a PEFT adapter, which has no such metadata, by its tensors", async () => {
    const device = new CpuDevice();
    const folder = await saved("lora", device);
    const file = join(folder, "adapter_model.safetensors");
    const bytes = new Uint8Array(await readFile(file));
    const checkpoint = await openSafetensors(memorySource(bytes, file));
    const tensors: TensorFile = {};
    for (const [name, tensor] of checkpoint.tensors) {
      tensors[name] = f32(tensor.shape, await tensor.readFloat32());
    }
    await writeFile(file, concatBytes(encodeSafetensors(tensors)));
    const wrong = [
      [{ numHiddenLayers: 9 }, "L-TENSOR-MISSING"],
      [{ numHiddenLayers: 7 }, "L-TENSOR-UNEXPECTED"],
      [{ hiddenSize: 64 }, "L-TENSOR-SHAPE"],
    ] as const;
    for (const [change, code] of wrong) {
      await expect(openAdapter(folder, device, { ...model, ...change })).rejects.toMatchObject({ code });
    }
    using adapter = await openAdapter(folder, device, model);
    expect(adapter.method).toBe("lora");
  });
});

describe("NF4 over a weight that is not finite is refused, naming it,", () => {
  const name = "model.layers.1.mlp.up_proj.weight";
  const dense = (value: number): TensorFile =>
    Object.fromEntries(
      decoderParameters(model).map((spec) => {
        const values = new TestRandom(3).normals(
          spec.shape.reduce((a, b) => a * b, 1),
          0.1,
        );
        if (spec.name === name) values[5] = value;
        return [spec.name, f32(spec.shape, values)];
      }),
    );
  const load = async (file: TensorFile, device: CpuDevice, config = model) => {
    const checkpoint = await openSafetensors(memorySource(concatBytes(encodeSafetensors(file)), "m"));
    return loadWeights(device, config, checkpoint, { quantizeBlocks: config.quantization === null });
  };

  it.each([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY])(
    "when it is quantized: %d",
    async (value) => {
      const device = new CpuDevice();
      await expect(load(dense(value), device)).rejects.toThrow(new RegExp(`L-NF4-FINITE.*${name}: value 5`));
      expect(device.memory.liveCount).toBe(0);
    },
  );

  it.each(["absmax", "offset"] as const)("when it is loaded with a broken %s", async (part) => {
    const device = new CpuDevice();
    const file = dense(1);
    const shape = file[name].shape;
    using store = new ParamStore(device, "weights");
    quantizeNf4(store, name, file[name].data as Float32Array);
    const read = async (suffix: string) =>
      Array.from((await store.get(name + suffix).read()) as Float32Array);
    const [table, nested] = [await read(".table"), await read(".absmax")];
    const scales = await read(".scales");
    const codes = await read("");
    const u8 = (values: ArrayLike<number>) =>
      ({ dtype: "U8", shape: [values.length], data: Uint8Array.from(values) }) as const;
    if (part === "absmax") nested[0] = Number.POSITIVE_INFINITY;
    const state = {
      quant_type: "nf4",
      blocksize: 64,
      shape,
      nested_blocksize: 256,
      nested_offset: table[272],
    };
    const json = JSON.stringify(state);
    const broken = part === "offset" ? json.replace(/"nested_offset":[^}]+/, '"nested_offset":1e999') : json;
    Object.assign(file, {
      [name]: u8(codes),
      [`${name}.quant_map`]: f32([16], table.slice(0, 16)),
      [`${name}.absmax`]: u8(scales),
      [`${name}.nested_absmax`]: f32([nested.length], nested),
      [`${name}.nested_quant_map`]: f32([256], table.slice(16, 272)),
      [`${name}.quant_state.bitsandbytes__nf4`]: u8(new TextEncoder().encode(broken)),
    });
    const config: ModelConfig = { ...model, quantization: { type: "bitsandbytes-nf4", doubleQuant: true } };
    await expect(load(file, device, config)).rejects.toThrow(new RegExp(name.replaceAll(".", "\\.")));
    store.dispose();
    expect(device.memory.liveCount).toBe(0);
  });
});
