/** A model from where a user keeps it: a folder, a GGUF file, a safetensors file or a hub id. */
import { readdir, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import type { FileSet } from "../formats/file-set.ts";
import type { GgufFile } from "../formats/gguf.ts";
import { modelConfigFromGguf } from "../formats/gguf-config.ts";
import { openGgufFile } from "../formats/gguf-parts.ts";
import { CONFIG } from "../formats/model-files.ts";
import { type OpenedModel, onlyGguf, openFolder, openGguf, readConfig } from "../formats/open-model-files.ts";
import { type ModelConfig, parseModelConfig } from "../model/config.ts";
import { bundledModels, findBundledConfig, findBundledModel } from "./bundled-configs.ts";
import { fileError, openFileSource } from "./file-source.ts";
import { downloadModel, type HubOptions, isHubId } from "./hub.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

/** A model on a disk, opened. */
export interface ModelFiles extends OpenedModel {
  /** Where its other files are: beside it, or in the GGUF itself. */
  readonly origin:
    | { readonly kind: "folder"; readonly folder: string }
    | { readonly kind: "gguf"; readonly gguf: GgufFile };
}

/** What a path leads to. Config and tokenizer of a safetensors file lie beside it; a GGUF holds its own. */
type Location =
  | { readonly kind: "folder"; readonly folder: string }
  | { readonly kind: "safetensors"; readonly folder: string; readonly file: string }
  | { readonly kind: "gguf"; readonly file: string };

async function filesIn(folder: string): Promise<FileSet> {
  try {
    const names = new Set(await readdir(folder));
    return { name: folder, names, open: (file) => openFileSource(join(folder, file)) };
  } catch (cause) {
    throw fileError(folder, cause);
  }
}

async function locate(path: string, hub: HubOptions): Promise<Location> {
  const stats = await stat(path).catch(() => null);
  if (stats?.isDirectory()) {
    const gguf = onlyGguf((await filesIn(path)).names);
    return gguf === null ? { kind: "folder", folder: path } : { kind: "gguf", file: join(path, gguf) };
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

/**
 * Opens a model; weights are read on demand. `path` is a folder, a `.gguf` file or a part of one, a `.safetensors` file beside its
 * `config.json`, or, if there is no such path, the name of a bundled model or a hub id, which is downloaded. Throws `L-MODEL-MISSING`, `L-HUB`, and what
 * reading its files throws.
 */
export async function openModel(path: string, hub: HubOptions = {}): Promise<ModelFiles> {
  const location = await locate(path, hub);
  if (location.kind === "gguf") {
    const { gguf, ...model } = await openGguf(path, location.file, openFileSource);
    return { ...model, origin: { kind: "gguf", gguf } };
  }
  const { folder } = location;
  const files = await filesIn(folder);
  const model =
    location.kind === "safetensors"
      ? await openFolder(path, files, () => openSafetensorsFile(location.file))
      : await openFolder(path, files);
  return { ...model, origin: { kind: "folder", folder } };
}

/**
 * The config alone, for planning: a folder needs nothing but its `config.json`, and the names in `bundledConfigs` need
 * nothing at all. Throws as `openModel` does.
 */
export async function openModelConfig(path: string, hub: HubOptions = {}): Promise<ModelConfig> {
  if (basename(path) === CONFIG) return parseModelConfig(await readJsonFile(path), path);
  const bundled = (await stat(path).catch(() => null)) ? null : await findBundledConfig(path);
  if (bundled) return readConfig(await filesIn(bundled));
  const location = await locate(path, { ...hub, configOnly: true });
  if (location.kind !== "gguf") return readConfig(await filesIn(location.folder));
  const gguf = await openGgufFile(location.file, openFileSource);
  try {
    return await modelConfigFromGguf(gguf);
  } finally {
    await gguf.source.close();
  }
}
