/**
 * A GGUF file in parts, as llama.cpp splits large ones: "NAME-00001-of-00003.gguf" holds the metadata and some of the tensors, the
 * others have tensors of their own. Each says which part of how many it is, and how many tensors all have together.
 */
import { SidenetError } from "@sidenet/tensor";
import { type ByteSource, refuse } from "./byte-source.ts";
import { type GgufFile, type GgufTensorInfo, readGguf } from "./gguf.ts";
import { isGgufPath } from "./model-files.ts";

/** Opens a file of the folder that a model is in. */
export type OpenFile = (file: string) => Promise<ByteSource>;

const PART = /-(\d{5})(?=-of-(\d{5})\.gguf$)/i;

/** The name of another part, counted from 0, of the file that this one is a part of by its name. */
const partName = (file: string, part: number): string =>
  file.replace(PART, `-${String(part + 1).padStart(5, "0")}`);

/** The GGUF files among these, each by its first part. */
export const ggufFiles = (names: Iterable<string>): string[] => {
  const files = [...names].filter(isGgufPath);
  return [...new Set(files.map((name) => partName(name, 0)))].sort();
};

async function openWhole(file: string, open: OpenFile): Promise<GgufFile> {
  const source = await open(file);
  try {
    return await readGguf(source);
  } catch (error) {
    await source.close();
    throw error;
  }
}

/** Opens part `no`, counted from 0, of those that `given` belongs to; errors name both. */
async function openPart(given: GgufFile, no: number, file: string, open: OpenFile): Promise<GgufFile> {
  const { name } = given.source;
  try {
    return await openWhole(partName(file, no), open);
  } catch (cause) {
    if (!(cause instanceof SidenetError)) throw cause;
    throw new SidenetError(cause.code, `${name} needs the other parts beside it. ${cause.text}`, { cause });
  }
}

/** Throws `L-GGUF-PARTS` for a file that is not part `no`, counted from 0, of those that `given` belongs to. */
function checkPart({ source, metadata }: GgufFile, given: GgufFile, no: number): void {
  const others = ["split.count", "split.tensors.count"].map((key) => [key, given.metadata.get(key)] as const);
  for (const [key, wanted] of [["split.no", no] as const, ...others]) {
    if (metadata.get(key) === wanted) continue;
    const text = `its ${key} is ${metadata.get(key)}, wanted ${wanted} by its name and ${given.source.name}. Fetch both again.`;
    refuse(source, "L-GGUF-PARTS", text);
  }
}

/** The tensors of all parts. Throws `L-GGUF-PARTS` where one is in two of them, or one is missing. */
function tensorsOf(parts: readonly GgufFile[]): Map<string, GgufTensorInfo> {
  const tensors = new Map<string, GgufTensorInfo>();
  for (const { source, tensors: own } of parts) {
    for (const [name, info] of own) {
      const other = tensors.get(name)?.source.name;
      if (other)
        refuse(source, "L-GGUF-PARTS", `it holds "${name}", and so does ${other}. Fetch both again.`);
      tensors.set(name, info);
    }
  }
  const wanted = parts[0].metadata.get("split.tensors.count");
  if (wanted === tensors.size) return tensors;
  const text = `its ${parts.length} parts hold ${tensors.size} tensors, not ${String(wanted)}. Fetch them again.`;
  return refuse(parts[0].source, "L-GGUF-PARTS", text);
}

/**
 * Opens a GGUF file, and where it is a part of one, the whole of it: the other parts have the same name but for their numbers.
 * Throws what `open` and `readGguf` throw, and `L-GGUF-PARTS` for parts that do not belong together.
 */
export async function openGgufFile(file: string, open: OpenFile): Promise<GgufFile> {
  const given = await openWhole(file, open);
  const count = given.metadata.get("split.count");
  if (typeof count !== "number" || count <= 1) return given;
  const parts: GgufFile[] = [];
  const close = async () => {
    for (const { source } of new Set([given, ...parts])) await source.close();
  };
  try {
    const [, number, of] = (PART.exec(file) ?? []).map(Number);
    if (of !== count) {
      const text = `it is one of ${count} parts. Name it as the others are, with a number and "-of-" before ".gguf".`;
      refuse(given.source, "L-GGUF-PARTS", text);
    }
    for (let i = 0; i < count; i++) {
      parts.push(i === number - 1 ? given : await openPart(given, i, file, open));
      checkPart(parts[i], given, i);
    }
    return { ...parts[0], tensors: tensorsOf(parts), source: { ...parts[0].source, close } };
  } catch (error) {
    await close();
    throw error;
  }
}
