import type { Checkpoint } from "../formats/checkpoint.ts";
import { openSafetensors } from "../formats/safetensors.ts";
import { openFileSource } from "./file-source.ts";

/** Opens a safetensors file, which is closed again if it is not one. Throws what `openSafetensors` and files throw. */
export async function openSafetensorsFile(path: string): Promise<Checkpoint> {
  const source = await openFileSource(path);
  try {
    return await openSafetensors(source);
  } catch (error) {
    await source.close();
    throw error;
  }
}
