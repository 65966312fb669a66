import { existsSync } from "node:fs";
import { mkdir, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import fc from "fast-check";
import { beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { encodeGguf } from "../src/formats/gguf-encode.ts";
import { dequantize } from "../src/formats/gguf-quants.ts";
import { modelConfigJson } from "../src/formats/hf-config.ts";
import { type ModelConfig, parseModelConfig } from "../src/model/config.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { openModel } from "../src/node/open-model.ts";
import { errorOf } from "./code-of.ts";
import { contentOf, convert, drawFamily, drawWeights, MODEL, putModel } from "./model-folder.ts";

const device = new CpuDevice();
let folder: string;
beforeEach(() => {
  folder = temporaryFolder();
});

const at = (...parts: string[]): string => join(folder, ...parts);

const sorted = (values: Map<string, Float32Array>) => [...values].sort(([a], [b]) => (a < b ? -1 : 1));

/** A GGUF calls Mistral "llama". */
const asGguf = (config: ModelConfig): ModelConfig => ({
  ...config,
  family: config.family === "mistral" ? "llama" : config.family,
  eosTokenIds: [],
  bosTokenId: null,
  padTokenId: null,
});

const runs = { numRuns: 15 };

describe("a model of any family", () => {
  it("comes back from its config.json", () => {
    fc.assert(
      fc.property(fc.nat(), (seed) => {
        const config = drawFamily(new TestRandom(seed));
        const json = JSON.parse(JSON.stringify(modelConfigJson(config, "float16")));
        expect(parseModelConfig(json)).toEqual(config);
      }),
    );
  });

  it("survives safetensors → GGUF → safetensors → GGUF, with equal values and equal files", async () => {
    await fc.assert(
      fc.asyncProperty(fc.nat(), fc.constantFrom("f16", "f32"), async (seed, type) => {
        const config = drawFamily(new TestRandom(seed));
        const [first, back, again] = [`a${seed}.gguf`, `b${seed}`, `c${seed}.gguf`].map((name) => at(name));
        const source = await putModel(at(`s${seed}`), config);
        await convert(source, first, type);
        const fromGguf = await contentOf(first);
        expect(asGguf(fromGguf.config)).toEqual(asGguf(config));
        expect(sorted(fromGguf.values)).toEqual(sorted((await contentOf(source)).values));
        await convert(first, back, type);
        expect(sorted((await contentOf(back)).values)).toEqual(sorted(fromGguf.values));
        await convert(back, again, type);
        const [bytes, wanted] = [await contentOf(again), fromGguf];
        expect(bytes).toEqual(wanted);
        await rm(folder, { recursive: true });
        await mkdir(folder);
      }),
      runs,
    );
  });

  it.each([
    ["max_window_layers", { max_window_layers: 2 }],
    [
      "layer_types",
      { layer_types: ["full", "sliding", "full", "sliding"].map((kind) => `${kind}_attention`) },
    ],
  ])("keeps the layers whose attention has a window, given as %s, through a GGUF file", async (_, given) => {
    const attentionBias = { qkv: true, o: false };
    const qwen2 = { ...MODEL, family: "qwen2", numHiddenLayers: 4, attentionBias, mlpBias: false } as const;
    const wanted = { use_sliding_window: true, sliding_window: 16, ...given };
    const config = parseModelConfig({ ...modelConfigJson(qwen2, "float16"), ...wanted });
    expect(modelConfigJson(config, "float16")).toMatchObject(wanted);
    const source = await putModel(at("m"), config);
    await convert(source, at("m.gguf"), "f16");
    await convert(at("m.gguf"), at("back"), "f16");
    expect(JSON.parse(await readFile(at("back", "config.json"), "utf8"))).toMatchObject(wanted);
  });

  it("keeps 16-bit values to the bit, in one file or in shards", async () => {
    for (const dtype of ["F16", "BF16"] as const) {
      const source = await putModel(at(dtype), drawFamily(new TestRandom(3)), dtype);
      const whole = await convert(source, at(`${dtype}-one`), dtype === "F16" ? "f16" : "bf16");
      expect(whole.files).toEqual(["config.json", "model.safetensors"]);
      const parts = await convert(source, at(`${dtype}-many`), dtype === "F16" ? "f16" : "bf16", {
        maxShardBytes: 2000,
      });
      expect(parts.files.length).toBeGreaterThan(4);
      expect(parts.files).toContain("model.safetensors.index.json");
      const wanted = sorted((await contentOf(source)).values);
      expect(sorted((await contentOf(at(`${dtype}-one`))).values)).toEqual(wanted);
      expect(sorted((await contentOf(at(`${dtype}-many`))).values)).toEqual(wanted);
    }
  });

  it("is refused where a value does not fit the new type, and nothing is left behind", async () => {
    const config = drawFamily(new TestRandom(5));
    const weights = drawWeights(config, "F32");
    const name = "model.layers.0.mlp.up_proj.weight";
    (weights[name].data as Float32Array)[3] = 70000;
    const source = await putModel(at("big"), config, "F32", weights);
    for (const output of ["out", "out.gguf"]) {
      const error = await errorOf(convert(source, at(output), "f16"));
      expect(error.code).toBe("L-CONVERT-RANGE");
      expect(error.message).toMatch(new RegExp(`${name}: element 3 is 70000.*bf16`));
    }
    expect(await readdir(folder)).toEqual(["big"]);
    await convert(source, at("out"), "bf16");
  });
});

describe("Q8_0", () => {
  const block = fc.array(fc.float({ noNaN: true, min: -60000, max: 60000 }), {
    minLength: 32,
    maxLength: 32,
  });

  it("is off by at most half a step of its block, and the same once it is read and written again", () => {
    fc.assert(
      fc.property(fc.array(block, { minLength: 1, maxLength: 4 }), (blocks) => {
        const values = Float32Array.from(blocks.flat());
        const bytes = encodeGguf("Q8_0", values);
        const read = dequantize("Q8_0", bytes, "w");
        for (const [b, wanted] of blocks.entries()) {
          const step = Math.max(...wanted.map(Math.abs)) / 127;
          // float16 holds the step to 2^-11 of it, 127 times, or to 2^-25 where it is tiny
          const slack = step / 16 + 127 * 2 ** -25;
          for (const [i, value] of wanted.entries())
            expect(Math.abs(read[32 * b + i] - value)).toBeLessThanOrEqual(step / 2 + slack);
        }
        expect(dequantize("Q8_0", encodeGguf("Q8_0", read), "w")).toEqual(read);
      }),
    );
  });

  it("is for rows of whole blocks; others stay F16, vectors F32", async () => {
    const config = { ...drawFamily(new TestRandom(1)), hiddenSize: 32, intermediateSize: 40 };
    const source = await putModel(at("m"), config);
    await convert(source, at("m.gguf"), "q8_0");
    const model = await openModel(at("m.gguf"));
    const typeOf = (name: string) => model.checkpoint.tensors.get(`model.layers.0.${name}.weight`)?.dtype;
    expect(["mlp.up_proj", "mlp.down_proj", "input_layernorm"].map(typeOf)).toEqual(["Q8_0", "F16", "F32"]);
    await model.close();
  });
});

describe("NF4", () => {
  it("is written as bitsandbytes stores it: every tensor aligned, and loaded as it is", async () => {
    const source = await putModel(at("m"), MODEL, "BF16");
    await convert(source, at("nf4"), "nf4", { maxShardBytes: 4000 });
    const quantized = await openModel(at("nf4"));
    expect(quantized.config.quantization).toEqual({ type: "bitsandbytes-nf4", doubleQuant: true });
    const name = "model.layers.1.mlp.down_proj.weight";
    const { tensors } = quantized.checkpoint;
    expect(tensors.get(name)).toMatchObject({
      dtype: "U8",
      shape: [(MODEL.hiddenSize * MODEL.intermediateSize) / 2, 1],
    });
    expect(tensors.get("model.norm.weight")?.dtype).toBe("BF16");
    const state = await tensors.get(`${name}.quant_state.bitsandbytes__nf4`)!.readBytes();
    expect(JSON.parse(new TextDecoder().decode(state))).toMatchObject({
      quant_type: "nf4",
      dtype: "bfloat16",
      shape: [MODEL.hiddenSize, MODEL.intermediateSize],
      nested_blocksize: 256,
    });
    await quantized.close();
    for (const file of (await readdir(at("nf4"))).filter((f) => f.endsWith(".safetensors"))) {
      const bytes = await readFile(at("nf4", file));
      const { __metadata__, ...header } = JSON.parse(
        bytes.toString("utf8", 8, 8 + Number(bytes.readBigUInt64LE(0))),
      );
      for (const { dtype, data_offsets } of Object.values<{ dtype: string; data_offsets: number[] }>(header))
        expect(data_offsets[0] % { F32: 4, BF16: 2, U8: 1 }[dtype]!).toBe(0);
    }
    // Quantized here and on its way to a device are the same weights.
    const onLoad = await openModel(source);
    const weights = await loadWeights(device, onLoad.config, onLoad.checkpoint, { quantizeBlocks: true });
    await onLoad.close();
    const again = await openModel(at("nf4"));
    const loaded = await loadWeights(device, again.config, again.checkpoint);
    await again.close();
    for (const [key, tensor] of weights) {
      if (key.startsWith("model.layers."))
        expect(await loaded.get(key).read(), key).toEqual(await tensor.read());
    }
    weights.dispose();
    loaded.dispose();
  });
});

describe("the output", () => {
  it("never replaces what it should not, and replaces a model whole when told to", async () => {
    const source = await putModel(at("m"), MODEL);
    await mkdir(at("full"));
    await writeFile(at("full", "letter.txt"), "mine");
    for (const overwrite of [false, true]) {
      const error = await errorOf(convert(source, at("full"), "f16", { overwrite }));
      expect(error.code).toBe("L-OUTPUT");
      expect(error.message).toContain(at("full"));
    }
    for (const place of [source, at("m", "model.safetensors"), at("m", "config.json")])
      expect((await errorOf(convert(source, place, "f16", { overwrite: true }))).code).toBe("L-OUTPUT");
    await convert(source, at("deep", "er", "out"), "f16");
    expect((await errorOf(convert(source, at("deep", "er", "out"), "f32"))).code).toBe("L-OUTPUT");
    await convert(source, at("deep", "er", "out"), "f32", { overwrite: true });
    expect((await openModelTypes(at("deep", "er", "out"))).has("F32")).toBe(true);
    await convert(source, at("deep", "er", "o.gguf"), "f16");
    await convert(source, at("deep", "er", "o.gguf"), "f32", { overwrite: true });
    expect((await readdir(at("deep", "er"))).sort()).toEqual(["o.gguf", "out"]);
    await writeFile(at("deep", "er", "out", "run.json"), "{}");
    const run = await errorOf(convert(source, at("deep", "er", "out"), "f16", { overwrite: true }));
    expect(run.message).toMatch(/out holds run\.json as well, which would be lost/);
    const file = await errorOf(convert(source, at("full", "letter.txt"), "f16", { overwrite: true }));
    expect(file.message).toMatch(/letter\.txt is a file, and a folder is to be written/);
    expect((await errorOf(convert(source, "", "f16", { overwrite: true }))).code).toBe("L-OUTPUT");
    expect((await errorOf(convert(source, at("x"), "q8_0"))).message).toMatch(
      /q8_0.*f32, f16, bf16, nf4.*\.gguf/,
    );
    expect((await errorOf(convert(source, at("x.gguf"), "nf4"))).code).toBe("L-CONVERT-TYPE");
  });

  it("is a file or a folder by the end of its name, in letters of either case", async () => {
    const source = await putModel(at("named"), MODEL);
    await convert(source, at("NAMED.GGUF"), "f16");
    expect((await stat(at("NAMED.GGUF"))).isFile()).toBe(true);
    const { message } = await errorOf(convert(source, at("o.Safetensors"), "f16"));
    expect(message).toMatch(
      /L-OUTPUT\] .*o\.Safetensors has the name of a file, and a folder .*Name a folder/,
    );
  });

  async function openModelTypes(path: string): Promise<Set<string>> {
    const model = await openModel(path);
    await model.close();
    return new Set([...model.checkpoint.tensors.values()].map(({ dtype }) => dtype));
  }
});

const GOLDEN = fileURLToPath(new URL("../../../../shared/golden/models", import.meta.url));

describe.runIf(existsSync(GOLDEN))("a golden model converted to NF4", () => {
  it("has the codes and scales of its golden file, to the bit", async () => {
    await convert(join(GOLDEN, "llama-gqa"), at("nf4"), "nf4");
    const [made, wanted] = [await openModel(at("nf4")), await openModel(join(GOLDEN, "llama-nf4"))];
    let compared = 0;
    for (const [name, tensor] of wanted.checkpoint.tensors) {
      if (!/proj\.weight(\.\w*(absmax|map))?$/.test(name)) continue;
      const own = made.checkpoint.tensors.get(name)!;
      expect({ name, dtype: own.dtype, shape: own.shape }).toEqual({
        name,
        dtype: tensor.dtype,
        shape: tensor.shape,
      });
      expect([...(await own.readBytes())], name).toEqual([...(await tensor.readBytes())]);
      compared++;
    }
    expect(compared).toBe(3 * 7 * 5);
    await Promise.all([made.close(), wanted.close()]);
  });
});
