// A model over bytes and an adapter, as files that the command reads.
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, Random } from "@sidenet/tensor";
import { concatBytes, encodeSafetensors, type WritableTensor } from "../src/formats/safetensors-write.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { saveAdapter } from "../src/node/adapter-files.ts";
import { randomDecoder } from "./tiny-model.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

export const CHATML =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const CONFIG = {
  ...{ architectures: ["LlamaForCausalLM"], model_type: "llama", vocab_size: 259, hidden_size: 16 },
  ...{
    intermediate_size: 24,
    num_hidden_layers: 2,
    num_attention_heads: 2,
    num_key_value_heads: 1,
    head_dim: 8,
  },
  ...{ rms_norm_eps: 1e-5, max_position_embeddings: 256, rope_theta: 10000 },
};

/**
 * Writes a random model with a tokenizer of bytes and a chat template, and a ladder that changes what it says. `damage` may
 * change the model's tensors before they are written.
 */
export async function writeTinyModel(
  folder: string,
  damage: (tensors: Record<string, WritableTensor>) => void = () => {},
): Promise<{ model: string; adapter: string }> {
  const model = join(folder, "model");
  const adapter = join(folder, "adapter");
  await mkdir(model, { recursive: true });
  await mkdir(adapter);
  const config = parseModelConfig(CONFIG);
  const tensors: Record<string, WritableTensor> = {};
  for (const [stream, { name, shape, kind }] of decoderParameters(config).entries()) {
    const size = shape.reduce((a, b) => a * b, 1);
    const data = new Random(7, stream).normals(size, kind === "norm" ? 0.1 : 0.3);
    tensors[name] = { dtype: "F32", shape, data: kind === "norm" ? data.map((value) => value + 1) : data };
  }
  damage(tensors);
  await writeFile(join(model, "model.safetensors"), concatBytes(encodeSafetensors(tensors)));
  await writeFile(join(model, "config.json"), JSON.stringify(CONFIG));
  await writeFile(join(model, "tokenizer.json"), JSON.stringify(byteTokenizer().json));
  const settings = { eos_token: "<|im_end|>", chat_template: CHATML };
  await writeFile(join(model, "tokenizer_config.json"), JSON.stringify(settings));

  const device = new CpuDevice();
  using decoder = randomDecoder(device, config);
  using side = makeAdapter({ method: "ladder", ladder: { width: 8, layers: 1 }, seed: 1 }, decoder, "tiny");
  const up = side.parameters.get("ladder.up.weight");
  device.scope(() => device.ops.accumulate(up, device.tensor(new Random(2).normals(up.size, 0.5), up.shape)));
  await saveAdapter(adapter, side, { name: "tiny", config, quantized: false });
  return { model, adapter };
}
