// Models with random weights that are generated on the device: nothing is downloaded, and the host stores no weights.

import { Decoder, decoderParameters, parseModelConfig } from "@sidenet/ladder";
import { openModelConfig } from "@sidenet/ladder/node";
import { NF4_BLOCKS, nf4Table, ParamStore } from "@sidenet/tensor";

/** Models for quick runs. */
const SMALL_MODELS = {
  small: {
    hidden_size: 128,
    intermediate_size: 384,
    num_hidden_layers: 4,
    vocab_size: 2048,
    max_position_embeddings: 16384,
  },
  tiny: {
    hidden_size: 64,
    intermediate_size: 128,
    num_hidden_layers: 2,
    vocab_size: 512,
    max_position_embeddings: 512,
  },
};

/** The configuration of one of these, or of a model that `sidenet plan` knows. */
function configOf(name) {
  if (!(name in SMALL_MODELS)) return openModelConfig(name);
  return parseModelConfig({
    model_type: "llama",
    num_attention_heads: 4,
    num_key_value_heads: 2,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: true,
    ...SMALL_MODELS[name],
  });
}

/** Elements of an NF4 weight that are generated and quantized at a time: 16 MiB in f32. */
const PART = 2 ** 22;
const DEVIATION = 0.02;

function randomFloats(device, shape, dtype, stream) {
  return device.scope(() => {
    const values = device.empty(shape);
    device.ops.normal(values, { seed: 1, stream, deviation: DEVIATION });
    return dtype === "f32" ? values : device.ops.cast(values, { to: dtype });
  });
}

/** A random weight in NF4: codes, table, absmax and scales, by the names that a decoder expects. */
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
    store.add(`${name}${suffix}`, parts[i]);
}

/** A decoder with the matrices of its blocks in NF4 or `dtype`, embeddings and head in `dtype`, and vectors in f32. */
export async function randomDecoder(device, name, { quantize, dtype }) {
  const config = await configOf(name);
  const store = new ParamStore(device, "weights");
  for (const [stream, { name: parameter, shape, kind }] of decoderParameters(config).entries()) {
    if (kind === "norm") store.add(parameter, device.tensor(new Float32Array(shape[0]).fill(1), shape));
    else if (kind === "bias") store.add(parameter, device.zeros(shape));
    else if (quantize && parameter.startsWith("model.layers."))
      randomNf4(device, store, parameter, shape, stream);
    else store.add(parameter, randomFloats(device, shape, dtype, stream));
    await device.synchronize(); // lets buffers of freed parts be reused
  }
  return new Decoder(config, store);
}
