import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { memorySource } from "../src/formats/byte-source.ts";
import { requireTensor } from "../src/formats/checkpoint.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { checkpointFromGguf, unpermuteRows } from "../src/formats/gguf-checkpoint.ts";
import { modelConfigFromGguf } from "../src/formats/gguf-config.ts";
import { huggingFaceName } from "../src/formats/gguf-names.ts";
import { concatBytes } from "../src/formats/safetensors-write.ts";
import { ropeFrequencies } from "../src/model/rope-tables.ts";
import { codeOf } from "./code-of.ts";
import {
  buildGguf,
  type Field,
  f32Bytes,
  type GgufSpec,
  llamaMetadata,
  llamaTensors,
  numbers,
  type TensorSpec,
} from "./gguf-builder.ts";

const read = (bytes: Uint8Array) => readGguf(memorySource(bytes, "test.gguf"));

describe("a checkpoint from a GGUF", () => {
  const open = async (spec: GgufSpec) => {
    const gguf = await read(buildGguf(spec));
    const config = await modelConfigFromGguf(gguf);
    return { config, checkpoint: checkpointFromGguf(gguf, config) };
  };

  it("has Hugging Face names and the config that the metadata means", async () => {
    const { config, checkpoint } = await open({ metadata: llamaMetadata(), tensors: llamaTensors() });
    expect(config).toMatchObject({
      family: "llama",
      vocabSize: 16,
      hiddenSize: 8,
      numAttentionHeads: 2,
      numKeyValueHeads: 1,
      headDim: 4,
      rmsNormEps: 1e-5,
      rope: { theta: 100000, scaling: null },
      tieWordEmbeddings: true,
      maxPositionEmbeddings: 64,
      quantization: null,
    });
    expect(requireTensor(checkpoint, "model.embed_tokens.weight", [16, 8]).dtype).toBe("F32");
    expect([...checkpoint.tensors.keys()].every((name) => name.startsWith("model."))).toBe(true);
  });

  it("undoes llama.cpp's order of q and k rows in llama files, and in no others", async () => {
    const tensors = llamaTensors();
    const stored = (name: string) =>
      new Float32Array(tensors.find((t) => t.name === name)?.bytes.buffer as ArrayBuffer);
    const { checkpoint } = await open({ metadata: llamaMetadata(), tensors });
    const q = await requireTensor(checkpoint, "model.layers.0.self_attn.q_proj.weight").readFloat32();
    const rows = [0, 2, 1, 3, 4, 6, 5, 7]; // within each head of 4: first the even, then the odd rows
    const expected = rows.flatMap((row) => [...stored("blk.0.attn_q.weight").subarray(row * 8, row * 8 + 8)]);
    expect([...q]).toEqual(expected);
    const v = await requireTensor(checkpoint, "model.layers.0.self_attn.v_proj.weight").readFloat32();
    expect(v).toEqual(stored("blk.0.attn_v.weight"));

    const qwen = await open({ metadata: llamaMetadata("qwen2"), tensors });
    const same = await requireTensor(qwen.checkpoint, "model.layers.0.self_attn.q_proj.weight").readFloat32();
    expect(same).toEqual(stored("blk.0.attn_q.weight"));
  });

  it("turns what the converter permuted back to what it was", () => {
    const cases = fc.record({
      heads: fc.integer({ min: 1, max: 4 }),
      half: fc.integer({ min: 1, max: 5 }),
      rowBytes: fc.integer({ min: 1, max: 6 }),
    });
    fc.assert(
      fc.property(cases, ({ heads, half, rowBytes }) => {
        const row = (index: number) => new Uint8Array(rowBytes).fill(index);
        const original = concatBytes(Array.from({ length: heads * 2 * half }, (_, i) => row(i)));
        // The converter: reshape(heads, 2, half, ...), swap axes 1 and 2.
        const order = Array.from({ length: heads }, (_, h) =>
          Array.from({ length: half }, (_, j) => [0, 1].map((side) => (h * 2 + side) * half + j)),
        ).flat(2);
        const permuted = concatBytes(order.map((index) => row(index)));
        expect(unpermuteRows(permuted, heads, 2 * half)).toEqual(original);
      }),
    );
  });

  it("names biases, q and k norms and the head", async () => {
    const metadata = llamaMetadata("qwen3");
    const extra: TensorSpec[] = [
      { name: "blk.0.attn_q_norm.weight", typeId: 0, shape: [4], bytes: f32Bytes([1, 1, 1, 1]) },
      { name: "blk.0.attn_q.bias", typeId: 0, shape: [8], bytes: new Uint8Array(32) },
      { name: "output.weight", typeId: 0, shape: [16, 8], bytes: new Uint8Array(512) },
    ];
    const { config, checkpoint } = await open({ metadata, tensors: [...llamaTensors(), ...extra] });
    expect(config).toMatchObject({
      qkNorm: true,
      attentionBias: { qkv: true, o: false },
      tieWordEmbeddings: false,
    });
    for (const name of [
      "model.layers.0.self_attn.q_norm.weight",
      "model.layers.0.self_attn.q_proj.bias",
      "lm_head.weight",
    ]) {
      expect(checkpoint.tensors.has(name)).toBe(true);
    }
  });

  it("finds Llama 3's rope parameters again in its frequency factors, and refuses other factors", async () => {
    const scaling = {
      type: "llama3",
      factor: 32,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    } as const;
    const theta = 5e7; // so that one wavelength is short and one past 8192
    const base = ropeFrequencies({ theta, scaling: null }, 4);
    const scaled = ropeFrequencies({ theta, scaling }, 4);
    const withFactors = (factors: ArrayLike<number>) =>
      open({
        metadata: { ...llamaMetadata(), "llama.rope.freq_base": { type: "f32", value: theta } },
        tensors: [
          ...llamaTensors(),
          { name: "rope_freqs.weight", typeId: 0, shape: [factors.length], bytes: f32Bytes(factors) },
        ],
      });
    const { config, checkpoint } = await withFactors(base.map((f, i) => f / scaled[i]));
    expect(config.rope.scaling).toEqual({ ...scaling, factor: expect.any(Number) });
    expect(checkpoint.tensors.size).toBe(llamaTensors().length);
    expect(await codeOf(withFactors([2, 3.3]))).toBe("L-CONFIG-UNSUPPORTED");
    expect((await withFactors([1, 1])).config.rope.scaling).toBe(null);
  });

  it.each<[string, Record<string, Field>, string]>([
    [
      "another architecture",
      { "general.architecture": { type: "string", value: "gemma" } },
      "L-CONFIG-ARCHITECTURE",
    ],
    ["a missing size", { "llama.block_count": { type: "string", value: "one" } }, "L-CONFIG"],
    ["heads that change by layer", { "llama.attention.head_count": numbers("u32", [2, 2]) }, "L-CONFIG"],
    [
      "key-value heads that do not divide",
      { "llama.attention.head_count_kv": { type: "u32", value: 3 } },
      "L-CONFIG",
    ],
    ["experts", { "llama.expert_count": { type: "u32", value: 8 } }, "L-CONFIG-UNSUPPORTED"],
    [
      "rope over half a head",
      { "llama.rope.dimension_count": { type: "u32", value: 2 } },
      "L-CONFIG-UNSUPPORTED",
    ],
    ["yarn", { "llama.rope.scaling.type": { type: "string", value: "yarn" } }, "L-CONFIG-ROPE"],
    [
      "scaled attention in the rope parameters",
      { "llama.rope.scaling.attn_factor": { type: "f32", value: 1.5 } },
      "L-CONFIG-ROPE",
    ],
    [
      "layers with a window that are not listed",
      {
        "llama.attention.sliding_window": { type: "u32", value: 32 },
        "llama.attention.sliding_window_pattern": { type: "u32", value: 4 },
      },
      "L-CONFIG-UNSUPPORTED",
    ],
    ["a part of a split file", { "split.count": { type: "u16", value: 2 } }, "L-CONFIG-UNSUPPORTED"],
  ])("%s is refused", async (_, fields, code) => {
    const bad = { metadata: { ...llamaMetadata(), ...fields }, tensors: llamaTensors() };
    expect(await codeOf(open(bad))).toBe(code);
  });

  const text = (value: string): Field => ({ type: "string", value });
  const f32 = (value: number): Field => ({ type: "f32", value });
  const linear = (factor: number) => ({ type: "linear", factor });
  it.each<[string, Record<string, Field>, object | null]>([
    ["no key", {}, null],
    ["a factor without a type", { "llama.rope.scaling.factor": f32(4) }, linear(4)],
    ["the older name of the factor", { "llama.rope.scale_linear": f32(2) }, linear(2)],
    ["both names", { "llama.rope.scaling.factor": f32(4), "llama.rope.scale_linear": f32(2) }, linear(4)],
    [
      "a factor that is switched off",
      { "llama.rope.scaling.type": text("none"), "llama.rope.scale_linear": f32(2) },
      null,
    ],
    [
      "the factor 0",
      { "llama.rope.scaling.type": text("linear"), "llama.rope.scaling.factor": f32(0) },
      null,
    ],
  ])("reads linear rope scaling as llama.cpp does: %s", async (_, fields, scaling) => {
    const { config } = await open({ metadata: { ...llamaMetadata(), ...fields }, tensors: llamaTensors() });
    expect(config.rope.scaling).toEqual(scaling);
  });

  it("refuses a tensor it has no place for, and q rows that do not fit the heads", async () => {
    const strange: TensorSpec = {
      name: "blk.0.attn_qkv.weight",
      typeId: 0,
      shape: [1],
      bytes: f32Bytes([1]),
    };
    expect(await codeOf(open({ metadata: llamaMetadata(), tensors: [...llamaTensors(), strange] }))).toBe(
      "L-GGUF-TENSOR",
    );
    const metadata = { ...llamaMetadata(), "llama.attention.key_length": { type: "u32", value: 6 } as const };
    expect(await codeOf(open({ metadata, tensors: llamaTensors() }))).toBe("L-TENSOR-SHAPE");
    expect(huggingFaceName("blk.0.constructor.weight")).toBe(null);
  });
});
