import type { Checkpoint } from "../formats/checkpoint.ts";
import { openSafetensorsOf } from "../formats/open-model-files.ts";
import { openFileSource } from "./file-source.ts";

/** Opens a safetensors file, which is closed again if it is not one. Throws what `openSafetensors` and files throw. */
export const openSafetensorsFile = async (path: string): Promise<Checkpoint> =>
  openSafetensorsOf(await openFileSource(path));
