/** A model from its files: in the layout of the Hugging Face hub, or one GGUF file. */
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import { type ModelConfig, parseModelConfig } from "../model/config.ts";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer.ts";
import type { ByteSource } from "./byte-source.ts";
import type { Checkpoint } from "./checkpoint.ts";
import { type FileLike, type FileSet, fileSet, readJson, readText } from "./file-set.ts";
import type { GgufFile } from "./gguf.ts";
import { checkpointFromGguf } from "./gguf-checkpoint.ts";
import { modelConfigFromGguf } from "./gguf-config.ts";
import { ggufFiles, type OpenFile, openGgufFile } from "./gguf-parts.ts";
import { tokenizerFromGguf } from "./gguf-tokenizer.ts";
import {
  CHAT_TEMPLATE,
  CONFIG,
  GENERATION_CONFIG,
  INDEX,
  TOKENIZER,
  TOKENIZER_CONFIG,
  WEIGHTS,
} from "./model-files.ts";
import { openSafetensors } from "./safetensors.ts";
import { openSafetensorsShards } from "./safetensors-shards.ts";

/** A model whose files are open: weights are read tensor by tensor. */
export interface OpenedModel {
  /** As the user gave it. */
  readonly name: string;
  readonly config: ModelConfig;
  readonly checkpoint: Checkpoint;
  /** Read on the first call. Throws `L-TOKENIZER-MISSING`, `L-TOKENIZER-KIND` or `L-TOKENIZER`. */
  tokenizer(): Promise<Tokenizer>;
  /** Closes the files. */
  close(): Promise<void>;
}

/**
 * The model of a folder that holds one GGUF file, whole or in parts, and no config of another model; null where it is not such a
 * folder.
 */
export function onlyGguf(names: ReadonlySet<string>): string | null {
  const ggufs = ggufFiles(names);
  return !names.has(CONFIG) && ggufs.length === 1 ? ggufs[0] : null;
}

/** Throws `L-MODEL-MISSING` where there is none. */
export async function readConfig(files: FileSet): Promise<ModelConfig> {
  if (!files.names.has(CONFIG)) {
    const ggufs = ggufFiles(files.names);
    let cure = "Is it the folder of a model?";
    if (ggufs.length > 1) cure = `Name one of its models: ${ggufs.join(", ")}.`;
    if (files.names.has("adapter_config.json")) {
      cure =
        "It is the folder of an adapter: give it to --adapter, and the model it was trained with to --model. After --method " +
        "full, sidenet export makes it a model.";
    }
    throw new SidenetError("L-MODEL-MISSING", `${files.name}: it holds no ${CONFIG}. ${cure}`);
  }
  const { value, name } = await readJson(files, CONFIG);
  return parseModelConfig(value, name);
}

/** `openSafetensors`, which closes a source that is no such file. */
export async function openSafetensorsOf(source: ByteSource): Promise<Checkpoint> {
  try {
    return await openSafetensors(source);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** Weights of a folder: `model.safetensors`, its shards, or the only safetensors file. */
async function openWeights(files: FileSet): Promise<Checkpoint> {
  const { names } = files;
  const open = async (file: string) => openSafetensorsOf(await files.open(file));
  if (names.has(WEIGHTS)) return open(WEIGHTS);
  if (names.has(INDEX)) {
    const { value, name } = await readJson(files, INDEX);
    return openSafetensorsShards(name, value, open);
  }
  const safetensors = [...names].filter((name) => name.endsWith(".safetensors"));
  if (safetensors.length === 1) return open(safetensors[0]);
  const other = [...names].find((name) => /\.(bin|pth?|ckpt|gguf)$/i.test(name));
  const found =
    safetensors.length > 1
      ? `${safetensors.length} safetensors files without ${INDEX}`
      : (other ?? "no weights");
  throw new SidenetError(
    "L-MODEL-MISSING",
    `${files.name}: it holds ${found}; wanted ${WEIGHTS}, or ${INDEX} with its shards. ` +
      "Save the model as safetensors, or name one file.",
  );
}

const eosSchema = z.looseObject({ eos_token_id: z.union([z.int(), z.array(z.int())]).nullish() });

/** The ids at which the model stops, of which a chat model has several. Throws `L-CONFIG` for what are no ids. */
async function eosIdsOf(files: FileSet): Promise<number[]> {
  for (const file of [GENERATION_CONFIG, CONFIG]) {
    if (!files.names.has(file)) continue;
    const { value, name } = await readJson(files, file);
    const refuse = () =>
      new SidenetError("L-CONFIG", `${name}: eos_token_id must be a token id or a list of them.`);
    const { eos_token_id: ids } = checked(eosSchema, value, refuse);
    if (ids != null) return [ids].flat();
  }
  return [];
}

async function readTokenizer(files: FileSet): Promise<Tokenizer> {
  const { names } = files;
  if (!names.has(TOKENIZER)) {
    const other = names.has("tokenizer.model") ? " Its tokenizer.model is not read." : "";
    throw new SidenetError(
      "L-TOKENIZER-MISSING",
      `${files.name}: it holds no ${TOKENIZER} (${TOKENIZER_CONFIG} beside it is read too).${other} ` +
        "Save the model's fast tokenizer there.",
    );
  }
  const config = names.has(TOKENIZER_CONFIG) ? (await readJson(files, TOKENIZER_CONFIG)).value : {};
  const { value, name } = await readJson(files, TOKENIZER);
  const tokenizer = loadTokenizer(value, config, name, await eosIdsOf(files));
  if (!names.has(CHAT_TEMPLATE)) return tokenizer;
  const template = await readText(files, CHAT_TEMPLATE);
  return tokenizer.withChatTemplate(template.value, template.name);
}

/** Calls `read` at most once. */
function once<T>(read: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | null = null;
  return () => {
    result ??= read();
    return result;
  };
}

/** Opens a model in the layout of the Hugging Face hub; `weights` in place of those in the folder. */
export async function openFolder(
  name: string,
  files: FileSet,
  weights: () => Promise<Checkpoint> = () => openWeights(files),
): Promise<OpenedModel> {
  const config = await readConfig(files);
  const checkpoint = await weights();
  const tokenizer = once(() => readTokenizer(files));
  return { name, config, checkpoint, tokenizer, close: () => checkpoint.close() };
}

/** Opens a model in a GGUF file or in the parts of one, which are closed if it is no such model. */
export async function openGguf(
  name: string,
  file: string,
  open: OpenFile,
): Promise<OpenedModel & { readonly gguf: GgufFile }> {
  const gguf = await openGgufFile(file, open);
  try {
    const config = await modelConfigFromGguf(gguf);
    const checkpoint = checkpointFromGguf(gguf, config);
    const tokenizer = once(async () => tokenizerFromGguf(gguf));
    return { name, config, checkpoint, tokenizer, gguf, close: () => checkpoint.close() };
  } catch (error) {
    await gguf.source.close();
    throw error;
  }
}

/**
 * Opens a model from the files of a page (`File` objects): one `.gguf` file or all its parts, or those of a folder in the layout of the Hugging Face
 * hub, with shards or without; `name` is for messages and for adapters. Throws `L-MODEL-MISSING`, and what reading the files throws.
 */
export async function openModelFiles(files: Iterable<FileLike>, name: string): Promise<OpenedModel> {
  const set = fileSet(files, name);
  const gguf = onlyGguf(set.names);
  return gguf === null ? openFolder(name, set) : openGguf(name, gguf, set.open);
}
