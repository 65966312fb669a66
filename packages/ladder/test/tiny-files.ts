// A model over bytes and an adapter, as files that the command reads.
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, Random } from "@sidenet/tensor";
import { concatBytes, encodeSafetensors, type WritableTensor } from "../src/formats/safetensors-write.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { decoderParameters } from "../src/model/decoder.ts";
import { saveAdapter } from "../src/node/adapter-files.ts";
import { randomDecoder, randomWeights } from "./tiny-model.ts";
import { TINY_CONFIG } from "./tiny-run.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

const CHATML =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const CONFIG = { ...TINY_CONFIG, vocab_size: 259, max_position_embeddings: 256 };

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
  const tensors: Record<string, WritableTensor> = randomWeights(decoderParameters(config), 7);
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
