import { readFile, stat } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import { checkJsonSize, parseJson } from "../formats/json.ts";
import { writeFileAtomic } from "./atomic-write.ts";
import { fileError } from "./file-source.ts";

/** A parsed JSON file. Throws `L-FILE-MISSING`, `L-FILE`, or `L-JSON` when it is not JSON. */
export async function readJsonFile(path: string): Promise<unknown> {
  let text: string;
  try {
    checkJsonSize(path, (await stat(path)).size);
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw cause instanceof SidenetError ? cause : fileError(path, cause);
  }
  return parseJson(text, path);
}

/** `readJsonFile` of a file that need not exist: undefined where there is none. */
export async function readJsonFileIfExists(path: string): Promise<unknown> {
  try {
    return await readJsonFile(path);
  } catch (error) {
    if (error instanceof SidenetError && error.code === "L-FILE-MISSING") return undefined;
    throw error;
  }
}

/** Writes a value as a JSON file for people to read, whole or not at all. Throws as `writeFileAtomic`. */
export async function writeJsonFile(path: string, value: unknown): Promise<void> {
  await writeFileAtomic(path, `${JSON.stringify(value, null, 2)}\n`);
}
