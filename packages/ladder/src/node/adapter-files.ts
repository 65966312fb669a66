/** An adapter's two files: `adapter_config.json` and `adapter_model.safetensors` (methods.md, 2 and 4). */
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { type Device, SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import type { Checkpoint } from "../formats/checkpoint.ts";
import type { FloatType } from "../formats/safetensors-write.ts";
import type { Adapter } from "../methods/adapter.ts";
import {
  ADAPTER_FILES,
  type BaseModel,
  encodeAdapter,
  PREFIX_KEY,
  STORAGE_KEY,
} from "../methods/encode-adapter.ts";
import {
  type AdapterConfig,
  assignAdapter,
  checkTrainedWith,
  loadAdapter,
  parseAdapterConfig,
} from "../methods/load-adapter.ts";
import type { ModelConfig } from "../model/config.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

/**
 * Writes an adapter to a folder that exists. Each file shows its old content or all of the new one, and the weights
 * come first: a new folder has a configuration only once the adapter is complete.
 * Throws `L-FILE` or `L-FILE-MISSING`, `L-ADAPTER-VALUES` for a parameter that is not finite, and `L-CONVERT-RANGE` for one
 * that `dtype` does not hold.
 */
export async function saveAdapter(
  folder: string,
  adapter: Adapter,
  base: BaseModel,
  dtype: FloatType = "F32",
): Promise<void> {
  const { weights, config } = await encodeAdapter(adapter, base, dtype);
  await writeFileAtomic(join(folder, ADAPTER_FILES.weights), weights);
  await writeFileAtomic(join(folder, ADAPTER_FILES.config), config);
}

const configPath = (folder: string): string => join(folder, ADAPTER_FILES.config);

/** Folders in `folder` that hold an adapter, such as those of a comparison. */
async function adapterFolders(folder: string): Promise<string[]> {
  const names = await readdir(folder).catch((): string[] => []);
  const paths = names.sort().map((name) => join(folder, name));
  return paths.filter((path) => existsSync(configPath(path)));
}

/** Throws `L-FILE-MISSING`, `L-FILE` or `L-JSON`. */
async function readConfigJson(folder: string): Promise<unknown> {
  const path = configPath(folder);
  try {
    return await readJsonFile(path);
  } catch (cause) {
    if (!(cause instanceof SidenetError) || cause.code !== "L-FILE-MISSING") throw cause;
    const folders = await adapterFolders(folder);
    const cure =
      folders.length > 0
        ? `Wanted one of the adapters in it: ${folders.join(", ")}.`
        : "Give the --output of a run that has ended or has written a checkpoint; a run that was killed before its first " +
          "checkpoint starts again with train --resume.";
    const text = `${folder} holds no adapter: there is no ${path}. ${cure}`;
    throw new SidenetError(cause.code, text, { cause });
  }
}

/** Throws `L-FILE-MISSING`, `L-FILE`, `L-JSON`, and what `parseAdapterConfig` throws. */
const readAdapterConfig = async (folder: string): Promise<AdapterConfig> =>
  parseAdapterConfig(await readConfigJson(folder), configPath(folder));

const openAdapterWeights = (folder: string): Promise<Checkpoint> =>
  openSafetensorsFile(join(folder, ADAPTER_FILES.weights));

/**
 * All weights of a model, where those are what a folder's run has trained; null: the folder holds an adapter.
 * Throws as `readAdapterConfig`, `L-ADAPTER-MODEL`, and what opening a safetensors file throws.
 */
export async function openFullWeights(folder: string, model: ModelConfig): Promise<Checkpoint | null> {
  const config = await readAdapterConfig(folder);
  if (config.kind !== "full") return null;
  const checkpoint = await openAdapterWeights(folder);
  try {
    checkTrainedWith(config.config.base_model_name_or_path, model, checkpoint);
    return checkpoint;
  } catch (error) {
    await checkpoint.close();
    throw error;
  }
}

/**
 * Loads the adapter of a folder, ours or PEFT's LoRA, for a model of this configuration. How the model is to be set up beside it,
 * as `openInference` does, says `readBackboneSetup`.
 * Throws as `readAdapterConfig`, and what `loadAdapter` and opening a safetensors file throw.
 */
export async function openAdapter(folder: string, device: Device, model: ModelConfig): Promise<Adapter> {
  const config = await readAdapterConfig(folder);
  const checkpoint = await openAdapterWeights(folder);
  try {
    return await loadAdapter(device, config, model, checkpoint);
  } catch (cause) {
    if (!(cause instanceof SidenetError) || cause.code !== "L-ADAPTER-CONFIG") throw cause;
    throw new SidenetError(
      cause.code,
      `${configPath(folder)}: ${cause.text} Is it an adapter of this model?`,
      { cause },
    );
  } finally {
    await checkpoint.close();
  }
}

const ownConfigSchema = z.looseObject({
  method: z.string(),
  base_model_name_or_path: z.string().default("another model"),
});

/**
 * Overwrites the parameters of an adapter of one's own with those that `saveAdapter` wrote to a folder. Throws
 * `L-ADAPTER-CONFIG` where the folder holds an adapter of another method, `L-ADAPTER-MODEL` where it was trained with another
 * model, `L-TENSOR-MISSING`, `L-TENSOR-SHAPE` or `L-TENSOR-UNEXPECTED` where its parameters are others, and what opening the
 * files throws.
 */
export async function restoreAdapter(folder: string, adapter: Adapter, model: ModelConfig): Promise<void> {
  const config = ownConfigSchema.safeParse(await readConfigJson(folder)).data;
  if (config?.method !== adapter.method) {
    const found = config ? `is of the method "${config.method}"` : "has no method";
    throw new SidenetError("L-ADAPTER-CONFIG", `${configPath(folder)} ${found}, wanted "${adapter.method}".`);
  }
  const checkpoint = await openAdapterWeights(folder);
  try {
    checkTrainedWith(config.base_model_name_or_path, model, checkpoint);
    await assignAdapter(adapter, checkpoint);
  } finally {
    await checkpoint.close();
  }
}

/** How the backbone of a folder's adapter was set up in training, as far as the file says. */
export async function readBackboneSetup(folder: string): Promise<Pick<BaseModel, "quantized" | "prefixIds">> {
  const checkpoint = await openAdapterWeights(folder);
  try {
    const storage = checkpoint.metadata.get(STORAGE_KEY);
    const prefix = checkpoint.metadata.get(PREFIX_KEY);
    return {
      ...(storage !== undefined && { quantized: storage === "nf4" }),
      ...(prefix !== undefined && { prefixIds: parsePrefix(prefix, checkpoint.name) }),
    };
  } finally {
    await checkpoint.close();
  }
}

/** Throws `L-ADAPTER-CONFIG`. */
function parsePrefix(text: string, name: string): number[] {
  if (/^\d{1,9}( \d{1,9})*$/.test(text)) return text.split(" ").map(Number);
  throw new SidenetError(
    "L-ADAPTER-CONFIG",
    `${name}: ${PREFIX_KEY} in its metadata is "${text.slice(0, 40)}", wanted token ids with a space between them.`,
  );
}
