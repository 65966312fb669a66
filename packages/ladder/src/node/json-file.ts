import { readFile } from "node:fs/promises";
import { SidenetError } from "@sidenet/tensor";
import { fileError } from "./file-source.ts";

/** A parsed JSON file. Throws `L-FILE-MISSING`, `L-FILE`, or `L-JSON` when it is not JSON. */
export async function readJsonFile(path: string): Promise<unknown> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (cause) {
    throw fileError(path, cause);
  }
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new SidenetError("L-JSON", `${path} is not JSON: ${(cause as Error).message}. Is it complete?`, {
      cause,
    });
  }
}
