/** JSON of files. */
import { SidenetError } from "@sidenet/tensor";

/** The largest tokenizers are a tenth of this, and it is all in memory at once. */
const MOST_BYTES = 2 ** 28;

/** Throws `L-JSON` for more bytes than a file of JSON or text here has. */
export function checkJsonSize(name: string, sizeBytes: number): void {
  if (sizeBytes <= MOST_BYTES) return;
  throw new SidenetError(
    "L-JSON",
    `${name} has ${sizeBytes} bytes, more than the ${MOST_BYTES} of a JSON file here. Is it one?`,
  );
}

/** The value of a JSON text. Throws `L-JSON`. */
export function parseJson(text: string, name: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    // Servers of pages answer with their start page where there is no such file.
    const cure = text.startsWith("<") ? "It looks like a web page: is its address right?" : "Is it complete?";
    throw new SidenetError("L-JSON", `${name} is not JSON: ${(cause as Error).message}. ${cure}`, { cause });
  }
}
