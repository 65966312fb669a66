/** What comes with the package: a small model, and configurations of well-known ones, so that these can be planned. */
import { readdir } from "node:fs/promises";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";

const FOLDER = new URL("../../configs/", import.meta.url);

/** Names that `sidenet plan --model` knows: "Qwen2.5-7B". */
export async function bundledConfigs(): Promise<string[]> {
  return (await readdir(FOLDER)).sort();
}

/** Organizations on the hub whose models are bundled, and names that differ there. */
const HUB_NAMES: Readonly<Record<string, string>> = { "Llama-2-7b-hf": "Llama-2-7B" };
const ORGANIZATIONS = ["HuggingFaceTB", "Qwen", "meta-llama"];

/** The folder of a bundled configuration by its name or hub id, in either case of letters; null where there is none. */
export async function findBundledConfig(name: string): Promise<string | null> {
  const organization = name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : null;
  if (organization !== null && !ORGANIZATIONS.includes(organization)) return null;
  const known = HUB_NAMES[basename(name)] ?? basename(name);
  const found = (await bundledConfigs()).find((config) => config.toLowerCase() === known.toLowerCase());
  return found === undefined ? null : fileURLToPath(new URL(`${found}/`, FOLDER));
}

const MODELS = new URL("../../models/", import.meta.url);

/** Names of whole models that every command knows: "tiny-books". */
export async function bundledModels(): Promise<string[]> {
  return (await readdir(MODELS)).sort();
}

/** The folder of a bundled model by its name; null where there is none. */
export async function findBundledModel(name: string): Promise<string | null> {
  return (await bundledModels()).includes(name) ? fileURLToPath(new URL(`${name}/`, MODELS)) : null;
}
