/** A side network's two files: `adapter_config.json` and `adapter_model.safetensors` (methods.md, 2). */
import { join } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import type { ModelConfig } from "../config.ts";
import { encodeSafetensors, type WritableTensor } from "../formats/safetensors-write.ts";
import { parseSideConfig } from "../ladder-config.ts";
import { BASE_MODEL_KEY, loadSideNetwork, modelSignature } from "../load-weights.ts";
import type { SideNetwork } from "../side-network.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";

/**
 * Writes a side network to a folder that exists. Each file shows its old content or all of the new one, and the weights
 * come first: a new folder has a configuration only once the adapter is complete.
 * Throws `L-FILE` or `L-FILE-MISSING`, and `L-ADAPTER-VALUES` for a parameter that is not finite.
 */
export async function saveAdapter(folder: string, side: SideNetwork): Promise<void> {
  const tensors: Record<string, WritableTensor> = {};
  for (const [name, tensor] of side.parameters) {
    const data = Float32Array.from(await tensor.read());
    if (!data.every(Number.isFinite)) {
      throw new SidenetError(
        "L-ADAPTER-VALUES",
        `${name} holds a value that is not finite, so nothing was written to ${folder}. Train with a lower learning rate.`,
      );
    }
    tensors[name] = { dtype: "F32", shape: tensor.shape, data };
  }
  const metadata = { format: "pt", [BASE_MODEL_KEY]: modelSignature(side.model) };
  await writeFileAtomic(join(folder, WEIGHTS), encodeSafetensors(tensors, metadata));
  await writeFileAtomic(join(folder, CONFIG), `${JSON.stringify(side.config, null, 2)}\n`);
}

/**
 * Loads the side network of a folder beside a model of this configuration.
 * Throws `L-FILE-MISSING`, `L-FILE`, `L-JSON`, and what `parseSideConfig` and `loadSideNetwork` throw.
 */
export async function loadAdapter(folder: string, device: Device, model: ModelConfig): Promise<SideNetwork> {
  const path = join(folder, CONFIG);
  const config = parseSideConfig(await readJsonFile(path), path);
  const checkpoint = await openSafetensorsFile(join(folder, WEIGHTS));
  try {
    return await loadSideNetwork(device, config, model, checkpoint);
  } finally {
    await checkpoint.close();
  }
}
