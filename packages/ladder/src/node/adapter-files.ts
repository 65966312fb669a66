/** An adapter's two files: `adapter_config.json` and `adapter_model.safetensors` (methods.md, 2 and 4). */
import { join } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import type { Adapter } from "../adapter.ts";
import type { ModelConfig } from "../config.ts";
import { checkNarrowed } from "../formats/float-codec.ts";
import { encodeSafetensors, type WritableTensor } from "../formats/safetensors-write.ts";
import {
  adapterConfigJson,
  BASE_MODEL_KEY,
  loadAdapter,
  modelSignature,
  parseAdapterConfig,
} from "../load-adapter.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

const CONFIG = "adapter_config.json";
const WEIGHTS = "adapter_model.safetensors";

/** The model that an adapter was trained with. */
export interface BaseModel {
  /** As PEFT's base_model_name_or_path has it. */
  readonly name: string;
  readonly config: ModelConfig;
  /** Whether the linear weights of its blocks were NF4; left out: not known. */
  readonly quantized?: boolean;
}

/** Key, in the metadata of the weights, of the storage that the backbone was trained with. */
const STORAGE_KEY = "base_quantization";

/**
 * Writes an adapter to a folder that exists. Each file shows its old content or all of the new one, and the weights
 * come first: a new folder has a configuration only once the adapter is complete.
 * Throws `L-FILE` or `L-FILE-MISSING`, `L-ADAPTER-VALUES` for a parameter that is not finite, and `L-CONVERT-RANGE` for one
 * that F16 does not hold.
 */
export async function saveAdapter(
  folder: string,
  adapter: Adapter,
  base: BaseModel,
  dtype: "F32" | "F16" | "BF16" = "F32",
): Promise<void> {
  const tensors: Record<string, WritableTensor> = {};
  for (const [name, tensor] of adapter.parameters) {
    const data = Float32Array.from(await tensor.read());
    if (!data.every(Number.isFinite)) {
      throw new SidenetError(
        "L-ADAPTER-VALUES",
        `${name} holds a value that is not finite, so nothing was written to ${folder}. Train with a lower learning rate.`,
      );
    }
    if (dtype === "F16") checkNarrowed(name, data, 65504, dtype);
    tensors[name] = { dtype, shape: tensor.shape, data };
  }
  const storage = base.quantized === undefined ? {} : { [STORAGE_KEY]: base.quantized ? "nf4" : "none" };
  const metadata = { format: "pt", [BASE_MODEL_KEY]: modelSignature(base.config), ...storage };
  await writeFileAtomic(join(folder, WEIGHTS), encodeSafetensors(tensors, metadata));
  const config = adapterConfigJson(adapter, base.name);
  await writeFileAtomic(join(folder, CONFIG), `${JSON.stringify(config, null, 2)}\n`);
}

/**
 * Loads the adapter of a folder, ours or PEFT's LoRA, for a model of this configuration.
 * Throws `L-FILE-MISSING`, `L-FILE`, `L-JSON`, and what `parseAdapterConfig` and `loadAdapter` throw.
 */
export async function openAdapter(folder: string, device: Device, model: ModelConfig): Promise<Adapter> {
  const path = join(folder, CONFIG);
  const json = await readJsonFile(path).catch((cause: unknown) => {
    if (!(cause instanceof SidenetError) || cause.code !== "L-FILE-MISSING") throw cause;
    throw new SidenetError(
      cause.code,
      `${folder} holds no adapter: there is no ${path}. Give the --output of a run that has ended; one that was killed writes ` +
        "its adapter when it goes on with --resume.",
      { cause },
    );
  });
  const config = parseAdapterConfig(json, path);
  const checkpoint = await openSafetensorsFile(join(folder, WEIGHTS));
  try {
    return await loadAdapter(device, config, model, checkpoint);
  } catch (cause) {
    if (!(cause instanceof SidenetError) || cause.code !== "L-ADAPTER-CONFIG") throw cause;
    const problem = cause.message.slice(`[${cause.code}] `.length);
    throw new SidenetError(cause.code, `${path}: ${problem} Is it an adapter of this model?`, { cause });
  } finally {
    await checkpoint.close();
  }
}

/** Whether the backbone of a folder's adapter was NF4 when it was trained; null: the file does not say. */
export async function trainedOnNf4(folder: string): Promise<boolean | null> {
  const checkpoint = await openSafetensorsFile(join(folder, WEIGHTS));
  try {
    const storage = checkpoint.metadata.get(STORAGE_KEY);
    return storage === undefined ? null : storage === "nf4";
  } finally {
    await checkpoint.close();
  }
}
