// Models of known sizes with random weights, made on the device: nothing is downloaded, and the host holds none of them.

import { Decoder, decoderParameters, parseModelConfig } from "@sidenet/ladder";
import { NF4_BLOCKS, nf4Table, ParamStore } from "@sidenet/tensor";

/** The fields of config.json that matter, as the hub has them. */
const CONFIGS = {
  "smollm2-135m": {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 576,
    intermediate_size: 1536,
    num_hidden_layers: 30,
    num_attention_heads: 9,
    num_key_value_heads: 3,
    vocab_size: 49152,
    rms_norm_eps: 1e-5,
    rope_theta: 100000,
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    hidden_act: "silu",
  },
  "qwen2.5-7b": {
    architectures: ["Qwen2ForCausalLM"],
    model_type: "qwen2",
    hidden_size: 3584,
    intermediate_size: 18944,
    num_hidden_layers: 28,
    num_attention_heads: 28,
    num_key_value_heads: 4,
    vocab_size: 152064,
    rms_norm_eps: 1e-6,
    rope_theta: 1000000,
    max_position_embeddings: 131072,
    tie_word_embeddings: false,
    use_sliding_window: false,
    hidden_act: "silu",
  },
  small: {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 128,
    intermediate_size: 384,
    num_hidden_layers: 4,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    vocab_size: 2048,
    rms_norm_eps: 1e-5,
    rope_theta: 100000,
    max_position_embeddings: 16384,
    tie_word_embeddings: true,
    hidden_act: "silu",
  },
  tiny: {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    vocab_size: 512,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    max_position_embeddings: 512,
    tie_word_embeddings: true,
    hidden_act: "silu",
  },
};

/** Elements that are made at a time: 16 MiB in f32. */
const PART = 2 ** 22;
const DEVIATION = 0.02;

function randomFloats(device, shape, dtype, stream) {
  return device.scope(() => {
    const values = device.empty(shape);
    device.ops.normal(values, { seed: 1, stream, deviation: DEVIATION });
    return dtype === "f32" ? values : device.ops.cast(values, { to: dtype });
  });
}

/** A random weight in NF4, under the names that a projection looks for (docs/decisions.md, "An NF4 weight travels as"). */
function randomNf4(device, store, name, [out, inner], stream) {
  const count = out * inner;
  const { ops } = device;
  const parts = device.scope(() => {
    const table = device.tensor(nf4Table({ double: true }), [273]);
    const codes = device.empty([count / 2], { dtype: "u8" });
    const absmax = device.empty([Math.ceil(count / NF4_BLOCKS.block)]);
    for (let at = 0; at < count; at += PART) {
      device.scope(() => {
        const part = device.empty([Math.min(PART, count - at)]);
        ops.normal(part, { seed: 1, stream, offset: at, deviation: DEVIATION });
        ops.nf4QuantizePart(codes, absmax, part, table, { at });
      });
    }
    const [scales, nested] = ops.nf4QuantizeScales(absmax, table);
    return [codes, table, nested, scales];
  });
  for (const [i, suffix] of ["", ".table", ".absmax", ".scales"].entries())
    store.set(`${name}${suffix}`, parts[i]);
}

/** A decoder of one of `CONFIGS`: matrices of blocks in NF4 or `dtype`, embeddings and head in `dtype`, vectors in f32. */
export async function randomDecoder(device, name, { quantize, dtype }) {
  const config = parseModelConfig(CONFIGS[name]);
  const store = new ParamStore(device, "weights");
  for (const [stream, { name: parameter, shape, kind }] of decoderParameters(config).entries()) {
    if (kind === "norm") store.set(parameter, device.tensor(new Float32Array(shape[0]).fill(1), shape));
    else if (kind === "bias") store.set(parameter, device.zeros(shape));
    else if (quantize && parameter.startsWith("model.layers."))
      randomNf4(device, store, parameter, shape, stream);
    else store.set(parameter, randomFloats(device, shape, dtype, stream));
    await device.synchronize(); // or freed parts would wait in the queue, all at once
  }
  return new Decoder(config, store);
}
