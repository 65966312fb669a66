/** The tokenizer of a model on its way into another format: carried where both have it, made where it can be made exactly. */
import { readdir, readFile } from "node:fs/promises";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { tokenizerFilesFromGguf } from "../formats/gguf-tokenizer.ts";
import { copiedVocabulary, NO_VOCABULARY, vocabularyFields } from "../formats/gguf-vocabulary.ts";
import type { GgufFields } from "../formats/gguf-write.ts";
import { CHAT_TEMPLATE, GENERATION_CONFIG, TOKENIZER, TOKENIZER_CONFIG } from "../formats/model-files.ts";
import type { ModelConfig } from "../model/config.ts";
import { chatTemplateIn } from "../text/tokenizer.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { readText } from "./file-source.ts";
import { readJsonFile, writeJsonFile } from "./json-file.ts";
import type { ModelFiles } from "./open-model.ts";

/** What belongs to a tokenizer or to generation in a model's folder, and does not depend on how weights are stored. */
export const TOKENIZER_FILES = [
  TOKENIZER,
  TOKENIZER_CONFIG,
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "tokenizer.model",
  CHAT_TEMPLATE,
  GENERATION_CONFIG,
];

interface CarriedTokenizer {
  readonly fields: GgufFields;
  /** Why there is none, or nothing. */
  readonly missing: readonly string[];
}

const noTokenizer = (reason: string): string[] => [`tokenizer (${reason})`];

async function chatTemplate(
  folder: string,
  names: readonly string[],
  config: unknown,
): Promise<string | null> {
  return names.includes(CHAT_TEMPLATE) ? readText(join(folder, CHAT_TEMPLATE)) : chatTemplateIn(config);
}

/** Fields of a GGUF file. Throws `L-TOKENIZER`, and `L-TOKENIZER-KIND` where the tokenizer cannot be said there exactly. */
export async function ggufTokenizer(
  { origin }: Pick<ModelFiles, "origin">,
  config: ModelConfig,
): Promise<CarriedTokenizer> {
  if (origin.kind === "gguf") {
    const fields = copiedVocabulary(origin.gguf);
    return "tokenizer.ggml.tokens" in fields
      ? { fields, missing: [] }
      : { fields: NO_VOCABULARY, missing: noTokenizer("the source has none") };
  }
  const { folder } = origin;
  const names = await readdir(folder);
  if (!names.includes(TOKENIZER)) {
    return { fields: NO_VOCABULARY, missing: noTokenizer(`${folder} has no tokenizer.json`) };
  }
  const path = join(folder, TOKENIZER);
  const tokenizerConfig = names.includes(TOKENIZER_CONFIG)
    ? await readJsonFile(join(folder, TOKENIZER_CONFIG))
    : {};
  const files = {
    tokenizer: await readJsonFile(path),
    config: tokenizerConfig,
    chatTemplate: await chatTemplate(folder, names, tokenizerConfig),
  };
  return { fields: await vocabularyFields(files, config, path), missing: [] };
}

/** Writes the tokenizer's files to a folder, and gives their names and what is missing. */
export async function carryTokenizer(
  { origin }: ModelFiles,
  to: string,
): Promise<{ files: string[]; missing: string[] }> {
  if (origin.kind === "folder") {
    const names = new Set(await readdir(origin.folder));
    const files = TOKENIZER_FILES.filter((name) => names.has(name));
    for (const name of files)
      await writeFileAtomic(join(to, name), await readFile(join(origin.folder, name)));
    const missing = names.has(TOKENIZER) ? [] : noTokenizer("the source has no tokenizer.json");
    return { files, missing };
  }
  let made: ReturnType<typeof tokenizerFilesFromGguf>;
  try {
    made = tokenizerFilesFromGguf(origin.gguf);
  } catch (error) {
    if (!(error instanceof SidenetError)) throw error;
    if (error.code !== "L-TOKENIZER-MISSING" && error.code !== "L-TOKENIZER-KIND") throw error;
    return { files: [], missing: noTokenizer(error.message) };
  }
  await writeFileAtomic(join(to, TOKENIZER), JSON.stringify(made.tokenizer));
  await writeJsonFile(join(to, TOKENIZER_CONFIG), made.config);
  return { files: [TOKENIZER, TOKENIZER_CONFIG], missing: [] };
}
