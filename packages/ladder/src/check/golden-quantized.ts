/** Golden operations on quantized weights, and low-rank adaptation. */
import { NF4_LEVELS, nf4Table, type Ops, sizeOf, type Tensor } from "@sidenet/tensor";
import * as z from "zod";
import { withLowRank } from "../methods/lora.ts";
import { define, type OpCall, type Outputs } from "./golden-op.ts";

const stateSchema = z.looseObject({
  shape: z.array(z.int().positive()),
  double_quant: z.boolean(),
  blocksize: z.int().positive(),
  nested_blocksize: z.int().positive().default(256),
});

type StateParams = z.infer<typeof stateSchema>;

const blocksOf = ({ blocksize, nested_blocksize }: StateParams) => ({
  block: blocksize,
  nestedBlock: nested_blocksize,
});

/** A vector of `length` zeros with x [n] at `start`. */
const placed = (ops: Ops, x: Tensor, start: number, length: number): Tensor =>
  ops.sliceBackward(ops.reshape(x, { shape: [x.size] }), { axis: 0, start, length });

/** The operands of the NF4 ops from the tensors of bitsandbytes. */
function operandsOf({ device: { ops }, inputs, params }: OpCall<StateParams>) {
  const codes = inputs.need("weight");
  if (!params.double_quant) {
    return { codes, table: inputs.need("quant_map"), absmax: inputs.need("absmax"), scales: null };
  }
  const parts = [inputs.need("quant_map"), inputs.need("nested_quant_map"), inputs.need("nested_offset")];
  const table = parts
    .map((part, i) => placed(ops, part, [0, 16, 272][i], 273))
    .reduce((a, b) => ops.add(a, b));
  return { codes, table, absmax: inputs.need("nested_absmax"), scales: inputs.need("absmax") };
}

const nf4Dequantize = define({
  params: stateSchema,
  run(call) {
    const { codes, table, absmax, scales } = operandsOf(call);
    const attrs = { shape: call.params.shape, ...blocksOf(call.params) };
    return { w: call.device.ops.nf4Dequantize(codes, table, absmax, scales, attrs) };
  },
});

/** The float tensors of a quantized weight. */
const STATE = ["absmax", "quant_map", "nested_absmax", "nested_quant_map", "nested_offset"];

const nf4Linear = define({
  params: stateSchema,
  alwaysF32: STATE,
  frozen: STATE,
  run(call) {
    const { codes, table, absmax, scales } = operandsOf(call);
    const attrs = { out: call.params.shape[0], ...blocksOf(call.params) };
    const { ops, inputs } = call;
    return { y: ops.nf4Linear(inputs.need("x"), codes, table, absmax, scales, inputs.find("b"), attrs) };
  },
});

const nf4Quantize = define({
  params: stateSchema,
  run({ device, inputs, params }) {
    const { ops } = device;
    const blocks = blocksOf(params);
    const { shape } = params;
    const double = params.double_quant;
    const table = device.tensor(nf4Table({ double }), [double ? 273 : 16]);
    const [codes, absmax] = ops.nf4Quantize(inputs.need("w"), table, { block: blocks.block });
    // Unpacks the codes: dequantizes them with level i = i and all scales 1.
    const counting = device.tensor(
      NF4_LEVELS.map((_, i) => i),
      [16],
    );
    const ones = ops.scale(absmax, { factor: 0 });
    ops.fill(ones, { value: 1 });
    const single: Outputs = {
      weight: codes,
      codes: ops.nf4Dequantize(codes, counting, ones, null, { shape: [sizeOf(shape)], ...blocks }),
      absmax_f32: absmax,
      quant_map: ops.slice(table, { axis: 0, start: 0, count: 16 }),
    };
    if (!double) {
      const dequantized = ops.nf4Dequantize(codes, table, absmax, null, { shape, ...blocks });
      return { ...single, absmax, dequantized };
    }
    const [scales, nested] = ops.nf4QuantizeScales(absmax, table, { nestedBlock: blocks.nestedBlock });
    return {
      ...single,
      absmax: scales,
      nested_absmax: nested,
      nested_quant_map: ops.slice(table, { axis: 0, start: 16, count: 256 }),
      nested_offset: ops.slice(table, { axis: 0, start: 272, count: 1 }),
      dequantized: ops.nf4Dequantize(codes, table, nested, scales, { shape, ...blocks }),
    };
  },
});

const loraLinear = define({
  params: z.looseObject({ scale: z.number() }),
  frozen: ["w", "b"],
  run({ ops, inputs, params: { scale } }) {
    const [x, w, a, b] = ["x", "w", "lora_a", "lora_b"].map(inputs.need);
    const layer = withLowRank((o, v) => o.linear(v, w, inputs.find("b")), { a, b, scale });
    return { y: layer(ops, x) };
  },
});

/** Golden operations on quantized weights, by the name in the field "op" of `params.json`. */
export const quantizedOps = {
  lora_linear: loraLinear,
  nf4_dequantize: nf4Dequantize,
  nf4_linear: nf4Linear,
  nf4_quantize: nf4Quantize,
};
