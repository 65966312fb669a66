/** A model from where a user keeps it: a folder, a GGUF file, a safetensors file or a hub id. */
import { readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import * as z from "zod";
import { checked } from "../external-input.ts";
import type { Checkpoint } from "../formats/checkpoint.ts";
import { type GgufFile, readGguf } from "../formats/gguf.ts";
import { checkpointFromGguf } from "../formats/gguf-checkpoint.ts";
import { modelConfigFromGguf } from "../formats/gguf-config.ts";
import { tokenizerFromGguf } from "../formats/gguf-tokenizer.ts";
import {
  CHAT_TEMPLATE,
  CONFIG,
  GENERATION_CONFIG,
  INDEX,
  TOKENIZER,
  TOKENIZER_CONFIG,
  WEIGHTS,
} from "../formats/model-files.ts";
import { openSafetensorsShards } from "../formats/safetensors-shards.ts";
import { type ModelConfig, parseModelConfig } from "../model/config.ts";
import { loadTokenizer, type Tokenizer } from "../text/tokenizer.ts";
import { bundledModels, findBundledConfig, findBundledModel } from "./bundled-configs.ts";
import { fileError, openFileSource, readText } from "./file-source.ts";
import { downloadModel, type HubOptions, isHubId } from "./hub.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

/** The files of a model, opened: weights are read tensor by tensor. */
export interface ModelFiles {
  /** As the user gave it. */
  readonly name: string;
  readonly config: ModelConfig;
  readonly checkpoint: Checkpoint;
  /** Where its other files are: beside it, or in the GGUF itself. */
  readonly origin:
    | { readonly kind: "folder"; readonly folder: string }
    | { readonly kind: "gguf"; readonly gguf: GgufFile };
  /** Read on the first call. Throws `L-TOKENIZER-MISSING`, `L-TOKENIZER-KIND` or `L-TOKENIZER`. */
  tokenizer(): Promise<Tokenizer>;
  /** Closes the files. */
  close(): Promise<void>;
}

/** What a path leads to. Config and tokenizer of a safetensors file lie beside it; a GGUF holds its own. */
type Location =
  | { readonly kind: "folder"; readonly folder: string }
  | { readonly kind: "safetensors"; readonly folder: string; readonly file: string }
  | { readonly kind: "gguf"; readonly file: string };

async function namesIn(folder: string): Promise<Set<string>> {
  try {
    return new Set(await readdir(folder));
  } catch (cause) {
    throw fileError(folder, cause);
  }
}

async function locate(path: string, hub: HubOptions): Promise<Location> {
  const stats = await stat(path).catch(() => null);
  if (stats?.isDirectory()) {
    const names = await namesIn(path);
    const ggufs = [...names].filter((name) => name.endsWith(".gguf"));
    if (!names.has(CONFIG) && ggufs.length === 1) return { kind: "gguf", file: join(path, ggufs[0]) };
    return { kind: "folder", folder: path };
  }
  if (stats && path.endsWith(".safetensors"))
    return { kind: "safetensors", file: path, folder: dirname(path) };
  if (stats) return { kind: "gguf", file: path }; // known by its first bytes, whatever its name
  const bundled = await findBundledModel(path);
  if (bundled) return { kind: "folder", folder: bundled };
  if (isHubId(path)) return { kind: "folder", folder: await downloadModel(path, hub) };
  throw new SidenetError(
    "L-MODEL-MISSING",
    `${path}: there is no such file or folder. Wanted a folder with ${CONFIG}, a .gguf file, a .safetensors file beside its ` +
      `${CONFIG}, the id of a model on the hub ("organization/name"), or the bundled ${(await bundledModels()).join(", ")}.`,
  );
}

async function readConfig(folder: string): Promise<ModelConfig> {
  const path = join(folder, CONFIG);
  const names = await namesIn(folder);
  if (!names.has(CONFIG)) {
    const ggufs = [...names].filter((name) => name.endsWith(".gguf")).sort();
    const cure =
      ggufs.length > 1 ? `Name one of its models: ${ggufs.join(", ")}.` : "Is it the folder of a model?";
    throw new SidenetError("L-MODEL-MISSING", `${folder}: it holds no ${CONFIG}. ${cure}`);
  }
  return parseModelConfig(await readJsonFile(path), path);
}

/** Weights of a folder: `model.safetensors`, its shards, or the only safetensors file. */
async function openWeights(folder: string): Promise<Checkpoint> {
  const names = await namesIn(folder);
  if (names.has(WEIGHTS)) return openSafetensorsFile(join(folder, WEIGHTS));
  if (names.has(INDEX)) {
    const index = join(folder, INDEX);
    const open = (file: string) => openSafetensorsFile(join(folder, file));
    return openSafetensorsShards(index, await readJsonFile(index), open);
  }
  const files = [...names].filter((name) => name.endsWith(".safetensors"));
  if (files.length === 1) return openSafetensorsFile(join(folder, files[0]));
  const other = [...names].find((name) => /\.(bin|pth?|ckpt|gguf)$/.test(name));
  const found =
    files.length > 1 ? `${files.length} safetensors files without ${INDEX}` : (other ?? "no weights");
  throw new SidenetError(
    "L-MODEL-MISSING",
    `${folder}: it holds ${found}; wanted ${WEIGHTS}, or ${INDEX} with its shards. ` +
      "Save the model as safetensors, or name one file.",
  );
}

const eosSchema = z.looseObject({ eos_token_id: z.union([z.int(), z.array(z.int())]).nullish() });

/** The ids at which the model stops, of which a chat model has several. Throws `L-CONFIG` for what are no ids. */
async function eosIdsOf(folder: string, names: ReadonlySet<string>): Promise<number[]> {
  for (const file of [GENERATION_CONFIG, CONFIG]) {
    if (!names.has(file)) continue;
    const path = join(folder, file);
    const refuse = () =>
      new SidenetError("L-CONFIG", `${path}: eos_token_id must be a token id or a list of them.`);
    const { eos_token_id: ids } = checked(eosSchema, await readJsonFile(path), refuse);
    if (ids != null) return [ids].flat();
  }
  return [];
}

async function readTokenizer(folder: string): Promise<Tokenizer> {
  const names = await namesIn(folder);
  if (!names.has(TOKENIZER)) {
    const other = names.has("tokenizer.model") ? " Its tokenizer.model is not read." : "";
    throw new SidenetError(
      "L-TOKENIZER-MISSING",
      `${folder}: it holds no ${TOKENIZER} (${TOKENIZER_CONFIG} beside it is read too).${other} ` +
        "Save the model's fast tokenizer there.",
    );
  }
  const config = names.has(TOKENIZER_CONFIG) ? await readJsonFile(join(folder, TOKENIZER_CONFIG)) : {};
  const path = join(folder, TOKENIZER);
  const tokenizer = loadTokenizer(await readJsonFile(path), config, path, await eosIdsOf(folder, names));
  if (!names.has(CHAT_TEMPLATE)) return tokenizer;
  const template = join(folder, CHAT_TEMPLATE);
  return tokenizer.withChatTemplate(await readText(template), template);
}

/** Calls `read` at most once. */
function once<T>(read: () => Promise<T>): () => Promise<T> {
  let result: Promise<T> | null = null;
  return () => {
    result ??= read();
    return result;
  };
}

async function openGgufModel(name: string, file: string): Promise<ModelFiles> {
  const source = await openFileSource(file);
  try {
    const gguf = await readGguf(source);
    const config = await modelConfigFromGguf(gguf);
    const checkpoint = checkpointFromGguf(gguf, config);
    const tokenizer = once(async () => tokenizerFromGguf(gguf));
    const origin = { kind: "gguf", gguf } as const;
    return { name, config, checkpoint, origin, tokenizer, close: () => checkpoint.close() };
  } catch (error) {
    await source.close();
    throw error;
  }
}

/**
 * Opens a model; weights are read on demand. `path` is a folder, a `.gguf` file, a `.safetensors` file beside its
 * `config.json`, or, if there is no such path, the name of a bundled model or a hub id, which is downloaded. Throws `L-MODEL-MISSING`, `L-HUB`, and what
 * reading its files throws.
 */
export async function openModel(path: string, hub: HubOptions = {}): Promise<ModelFiles> {
  const location = await locate(path, hub);
  if (location.kind === "gguf") return openGgufModel(path, location.file);
  const { folder } = location;
  const config = await readConfig(folder);
  const checkpoint =
    location.kind === "safetensors" ? await openSafetensorsFile(location.file) : await openWeights(folder);
  const tokenizer = once(() => readTokenizer(folder));
  const origin = { kind: "folder", folder } as const;
  return { name: path, config, checkpoint, origin, tokenizer, close: () => checkpoint.close() };
}

/**
 * The config alone, for planning: a folder needs nothing but its `config.json`, and the names in `bundledConfigs` need
 * nothing at all. Throws as `openModel` does.
 */
export async function openModelConfig(path: string, hub: HubOptions = {}): Promise<ModelConfig> {
  if (basename(path) === CONFIG) return parseModelConfig(await readJsonFile(path), path);
  const bundled = (await stat(path).catch(() => null)) ? null : await findBundledConfig(path);
  if (bundled) return readConfig(bundled);
  const location = await locate(path, { ...hub, configOnly: true });
  if (location.kind !== "gguf") return readConfig(location.folder);
  const source = await openFileSource(location.file);
  try {
    return await modelConfigFromGguf(await readGguf(source));
  } finally {
    await source.close();
  }
}
