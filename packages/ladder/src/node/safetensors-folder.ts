/** A model as a folder of the Hugging Face layout: config.json, safetensors (in shards past a size), tokenizer. */
import { join } from "node:path";
import type { Device } from "@sidenet/tensor";
import { checkNarrowed } from "../formats/float-codec.ts";
import { type CheckpointType, modelConfigJson, quantizationJson } from "../formats/hf-config.ts";
import { CONFIG, INDEX, WEIGHTS } from "../formats/model-files.ts";
import {
  type FloatType,
  headerBytes,
  storedBytes,
  streamSafetensors,
  type TensorGroup,
} from "../formats/safetensors-write.ts";
import type { ModelTensor } from "../methods/model-tensors.ts";
import { isBlockMatrix } from "../model/base-storage.ts";
import { nf4Bytes, nf4Headers, quantizedValues } from "../model/nf4-file.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { carryTokenizer } from "./carry-tokenizer.ts";
import {
  type ConvertOptions,
  type ConvertProgress,
  type OutgoingModel,
  reporting,
} from "./convert-options.ts";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import { sizeOfFiles, writeFolderAtomic } from "./output-folder.ts";

const TYPES: Readonly<Record<FloatType, CheckpointType>> = {
  F32: "float32",
  F16: "float16",
  BF16: "bfloat16",
};

/** What floats are stored as; beside NF4 16 bits, of the kind that the model has. */
function floatDtype({ type, tensors }: OutgoingModel): FloatType {
  if (type === "f32") return "F32";
  const isBf16 = type === "bf16" || (type === "nf4" && tensors.some(({ storedAs }) => storedAs === "BF16"));
  return isBf16 ? "BF16" : "F16";
}

function groupOf(device: Device, tensor: ModelTensor, model: OutgoingModel, dtype: FloatType): TensorGroup {
  const { name, shape } = tensor;
  if (model.type === "nf4" && isBlockMatrix(tensor)) {
    const read = async () => {
      const values = model.calibrated
        ? await model.calibrated.weight(name)
        : await quantizedValues(device, name, await tensor.read());
      return nf4Bytes(name, shape, values, TYPES[dtype]);
    };
    return { tensors: nf4Headers(name, shape), read };
  }
  const read = async () => {
    const data = await tensor.read();
    checkNarrowed(name, data, dtype);
    return [storedBytes({ dtype, data })];
  };
  return { tensors: [{ name, dtype, shape }], read };
}

const sizeOfGroup = ({ tensors }: TensorGroup): number => tensors.reduce((sum, t) => sum + headerBytes(t), 0);

/** Consecutive groups within `maxBytes` a file; one that is larger has a file of its own. */
function shardsOf(groups: readonly TensorGroup[], maxBytes: number): TensorGroup[][] {
  const shards: TensorGroup[][] = [[]];
  let bytes = 0;
  for (const group of groups) {
    const size = sizeOfGroup(group);
    if (bytes > 0 && bytes + size > maxBytes) {
      shards.push([]);
      bytes = 0;
    }
    shards.at(-1)!.push(group);
    bytes += size;
  }
  // NF4 first: its bytes are a multiple of 4, so the halves behind it are aligned too.
  return shards.map((shard) =>
    shard.sort((a, b) => Number(b.tensors.length > 1) - Number(a.tensors.length > 1)),
  );
}

/** The model's own file, as far as it has one, with what conversion changes. */
async function configJson(model: OutgoingModel, dtype: FloatType): Promise<object> {
  const { files, config, type } = model;
  const quantization = type === "nf4" ? { quantization_config: quantizationJson(TYPES[dtype]) } : {};
  if (files.origin.kind === "gguf") return { ...modelConfigJson(config, TYPES[dtype]), ...quantization };
  const original = (await readJsonFile(join(files.origin.folder, CONFIG))) as Record<string, unknown>;
  const { quantization_config: _, torch_dtype: __, dtype: ___, ...rest } = original;
  return {
    ...rest,
    tie_word_embeddings: config.tieWordEmbeddings,
    torch_dtype: TYPES[dtype],
    ...quantization,
  };
}

/** Writes the folder, which appears whole or not at all. Throws what reading, quantizing and writing throw. */
export async function writeSafetensorsFolder(
  device: Device,
  model: OutgoingModel,
  options: ConvertOptions,
  onProgress: ConvertProgress,
): Promise<{ size_bytes: number; files: string[]; missing: string[] }> {
  const dtype = floatDtype(model);
  const groups = model.tensors.map((tensor) => groupOf(device, tensor, model, dtype));
  const reported = reporting(groups, sizeOfGroup, onProgress);
  return writeFolderAtomic(options.output, async (folder) => {
    const names = await writeShards(folder, shardsOf(reported, options.maxShardBytes));
    const tokenizer = await carryTokenizer(model.files, folder);
    await writeJsonFile(join(folder, CONFIG), await configJson(model, dtype));
    const files = [CONFIG, ...names, ...tokenizer.files];
    return { size_bytes: await sizeOfFiles(folder, files), files, missing: tokenizer.missing };
  });
}

async function writeShards(folder: string, shards: readonly TensorGroup[][]): Promise<string[]> {
  const number = (i: number) => String(i).padStart(5, "0");
  const nameOf = (i: number) =>
    shards.length === 1 ? WEIGHTS : `model-${number(i + 1)}-of-${number(shards.length)}.safetensors`;
  const names: string[] = [];
  const weightMap: Record<string, string> = {};
  for (const [i, shard] of shards.entries()) {
    const name = nameOf(i);
    await writeFileAtomic(join(folder, name), streamSafetensors(shard, { format: "pt" }));
    names.push(name);
    for (const { tensors } of shard) for (const tensor of tensors) weightMap[tensor.name] = name;
  }
  if (shards.length === 1) return names;
  const total_size = shards.flat().reduce((sum, group) => sum + sizeOfGroup(group), 0);
  const index = { metadata: { total_size }, weight_map: weightMap };
  await writeJsonFile(join(folder, INDEX), index);
  return [...names, INDEX];
}
