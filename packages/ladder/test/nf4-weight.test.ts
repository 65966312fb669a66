import { CpuDevice, nf4Table, ParamStore, type Tensor, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { memorySource } from "../src/formats/byte-source.ts";
import { openSafetensors } from "../src/formats/safetensors.ts";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { Decoder, decoderParameters } from "../src/model/decoder.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { nf4Projection, quantizeNf4 } from "../src/model/nf4-weight.ts";
import { f32, MODEL, type TensorFile } from "./golden-cases.ts";

const quantization_config = {
  load_in_4bit: true,
  bnb_4bit_quant_type: "nf4",
  bnb_4bit_use_double_quant: true,
};
const config = parseModelConfig({ ...MODEL, quantization_config });
const isLinear = (name: string) => name.includes(".layers.") && name.endsWith("proj.weight");

const u8 = (values: ArrayLike<number>) => ({
  dtype: "U8" as const,
  shape: [values.length],
  data: Uint8Array.from(values),
});

/** A checkpoint as bitsandbytes writes it with blocks of this size, and the weights that it stands for, by name. */
async function quantizedCheckpoint(double: boolean, block = 64) {
  const device = new CpuDevice();
  const file: TensorFile = {};
  const dense = new Map<string, Float32Array>();
  const pick = new TestRandom(11);
  for (const { name, shape } of decoderParameters(config)) {
    const values = Float32Array.from(
      pick.normals(
        shape.reduce((a, b) => a * b, 1),
        0.3,
      ),
    );
    if (!isLinear(name)) {
      file[name] = f32(shape, values);
      dense.set(name, values);
      continue;
    }
    const made = device.scope(() => {
      const table = device.tensor(nf4Table({ double }), [double ? 273 : 16]);
      const [codes, absmax] = device.ops.nf4Quantize(device.tensor(values, shape), table, { block });
      const [scales, nested] = double ? device.ops.nf4QuantizeScales(absmax, table) : [null, absmax];
      const w = device.ops.nf4Dequantize(codes, table, nested, scales, { shape, block });
      return { codes, table, nested, scales, w };
    });
    const read = async (tensor: Tensor | null) => (await tensor?.read()) as Float32Array;
    const [table, absmax] = [await read(made.table), await read(made.nested)];
    const state = { quant_type: "nf4", blocksize: block, dtype: "float32", shape };
    file[name] = u8(await read(made.codes));
    file[`${name}.quant_map`] = f32([16], table.slice(0, 16));
    if (double) {
      file[`${name}.absmax`] = u8(await read(made.scales));
      file[`${name}.nested_absmax`] = f32([absmax.length], absmax);
      file[`${name}.nested_quant_map`] = f32([256], table.slice(16, 272));
      Object.assign(state, { nested_blocksize: 256, nested_offset: table[272] });
    } else file[`${name}.absmax`] = f32([absmax.length], absmax);
    file[`${name}.quant_state.bitsandbytes__nf4`] = u8(new TextEncoder().encode(JSON.stringify(state)));
    dense.set(name, await read(made.w));
    for (const tensor of Object.values(made)) tensor?.dispose();
  }
  return { file, dense };
}

const open = (file: TensorFile) =>
  openSafetensors(memorySource(concatBytes(encodeSafetensors(file)), "model.safetensors"));

describe.each([
  [true, 64],
  [false, 64],
  [true, 8],
  [false, 128],
])("a checkpoint in NF4, double quantization %s, blocks of %i", (double, block) => {
  it("computes what its dequantized weights compute", async () => {
    const { file, dense } = await quantizedCheckpoint(double, block);
    const device = new CpuDevice({ precision: "f64" });
    const logits = async (quantized: boolean) => {
      const tensors = Object.fromEntries(
        decoderParameters(config).map(({ name, shape }) => [name, f32(shape, dense.get(name)!)]),
      );
      const model = quantized ? config : { ...config, quantization: null };
      using decoder = new Decoder(
        model,
        await loadWeights(device, model, await open(quantized ? file : tensors)),
      );
      using y = device.scope(() => {
        const forward = decoder.prepare({
          inputIds: [1, 2, 3, 4],
          batchSize: 1,
          length: 4,
          attentionMask: null,
        });
        return decoder.logits(device.ops, decoder.hidden(device.ops, forward));
      });
      return y.read();
    };
    const [whole, quantized] = [await logits(false), await logits(true)];
    for (const [i, value] of whole.entries()) expect(quantized[i]).toBeCloseTo(value, 10);
    expect(device.memory.liveCount).toBe(0);
  });
});

describe.each(["layers.0.self_attn.q_proj", "layers.1.mlp.down_proj"])(
  "a checkpoint in NF4 but for %s",
  (module) => {
    const name = `model.${module}.weight`;
    it.each([false, true])("is in NF4 as a whole where that is asked for: %s", async (quantizeBlocks) => {
      const { file, dense } = await quantizedCheckpoint(true);
      const { shape } = decoderParameters(config).find((spec) => spec.name === name)!;
      const others = Object.entries(file).filter(([key]) => !key.startsWith(name));
      const mixed = await open({ ...Object.fromEntries(others), [name]: f32(shape, dense.get(name)!) });
      const weights = await loadWeights(new CpuDevice(), config, mixed, { quantizeBlocks });
      using decoder = new Decoder(config, weights);
      expect(decoder.isQuantized).toBe(quantizeBlocks); // what an adapter's file says of the weights beside it
      makeAdapter({ method: "qlora" }, decoder, "base").dispose(); // throws over a model in floats
    });
  },
);

describe("NF4 tensors that do not fit are refused, with nothing left on the device:", () => {
  const name = "model.layers.0.self_attn.q_proj.weight";
  const state = (change: object) => (file: TensorFile) => {
    const key = `${name}.quant_state.bitsandbytes__nf4`;
    const old = JSON.parse(new TextDecoder().decode(file[key].data as Uint8Array));
    file[key] = u8(new TextEncoder().encode(JSON.stringify({ ...old, ...change })));
  };
  const cases: [title: string, code: string, change: (file: TensorFile) => void][] = [
    ["another type", "L-NF4", state({ quant_type: "fp4" })],
    ["a weight of another shape", "L-TENSOR-SHAPE", state({ shape: [1, 2] })],
    ["no offset", "L-NF4", state({ nested_offset: undefined })],
    ["another block size than the scales have", "L-TENSOR-SHAPE", state({ blocksize: 8 })],
    ["codes that are cut off", "L-TENSOR-SHAPE", (file) => (file[name] = u8([1, 2, 3]))],
    [
      "scales of another type",
      "L-NF4",
      (file) => {
        const { shape, data } = file[`${name}.absmax`];
        file[`${name}.absmax`] = f32(shape, Array.from(data as Uint8Array));
      },
    ],
    ["no map", "L-TENSOR-MISSING", (file) => delete file[`${name}.nested_quant_map`]],
    [
      "a state that is not JSON",
      "L-NF4",
      (file) => (file[`${name}.quant_state.bitsandbytes__nf4`] = u8([123])),
    ],
  ];
  it.each(cases)("%s", async (_title, code, change) => {
    const { file } = await quantizedCheckpoint(true);
    change(file);
    const device = new CpuDevice();
    await expect(
      open(file).then((checkpoint) => loadWeights(device, config, checkpoint)),
    ).rejects.toMatchObject({ code });
    expect(device.memory.liveCount).toBe(0);
  });
});

it("a weight that is not finite is refused by name", () => {
  const device = new CpuDevice();
  using store = new ParamStore(device, "weights");
  expect(() => quantizeNf4(store, "w", Float32Array.of(1, Number.NaN))).toThrow(/w: value 1 is NaN/);
  expect(nf4Projection(store, "w", [1, 2], null)).toBeNull();
  expect(device.memory.liveCount).toBe(0);
});
