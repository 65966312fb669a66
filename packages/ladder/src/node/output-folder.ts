import { access, constants, mkdir, readdir, realpath, rename, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { isStream, syncFolder } from "./atomic-write.ts";
import { TOKENIZER_FILES } from "./carry-tokenizer.ts";
import { fileError } from "./file-source.ts";
import { makeFolder } from "./make-folder.ts";
import { targetOf, withTemporary } from "./temporary-path.ts";

/** Files by which a folder is known as one that this project wrote, and may replace. */
const OURS = ["config.json", "adapter_config.json"];
/** All that stands in such a folder: where there is more, replacing it would lose what is not ours to lose. */
const REPLACED = [
  ...OURS,
  ...TOKENIZER_FILES,
  /^(adapter_)?model(-\d+-of-\d+)?\.safetensors(\.index\.json)?$/,
  /^(README\.md|\.gitattributes|\.DS_Store)$/,
];

const isReplaced = (name: string): boolean =>
  REPLACED.some((known) => (typeof known === "string" ? known === name : known.test(name)));

/** Bytes of these files of a folder, together. */
export async function sizeOfFiles(folder: string, names: readonly string[]): Promise<number> {
  const sizes = await Promise.all(names.map(async (name) => (await stat(join(folder, name))).size));
  return sizes.reduce((a, b) => a + b, 0);
}

async function namesIn(folder: string): Promise<string[] | null> {
  try {
    return await readdir(folder);
  } catch (cause) {
    if ((cause as NodeJS.ErrnoException).code === "ENOENT") return null;
    throw fileError(folder, cause);
  }
}

const isIn = (inner: string, outer: string): boolean => inner === outer || inner.startsWith(`${outer}/`);

/**
 * Throws `L-OUTPUT` for a folder with the name of a file, and when something is at `path` that may not be replaced: anything, unless
 * `overwrite` is set; then still what is no such `kind`, a folder that holds no model and no adapter or more than that, such as a
 * run, and what is read from (`inputs`).
 */
export async function checkOutput(
  path: string,
  kind: "file" | "folder",
  overwrite: boolean,
  inputs: readonly string[],
): Promise<void> {
  if (path === "") throw new SidenetError("L-OUTPUT", "the name of the output is empty. Name a place.");
  if (kind === "folder" && /\.safetensors$/i.test(path)) {
    throw new SidenetError(
      "L-OUTPUT",
      `${path} has the name of a file, and a folder is written, with the .safetensors file in it. Name a folder.`,
    );
  }
  const real = await realpath(path).catch(() => null);
  if (real === null) return;
  for (const input of inputs) {
    const source = await realpath(input).catch(() => null);
    if (source !== null && (isIn(source, real) || isIn(real, source))) {
      throw new SidenetError("L-OUTPUT", `${path} is where ${input} is read from. Write to another place.`);
    }
  }
  const names = await namesIn(path).catch(() => null); // null: a file
  if (names?.length === 0) return;
  if (!overwrite) {
    throw new SidenetError("L-OUTPUT", `${path} exists. Write to another place, or add --overwrite.`);
  }
  if ((names === null) !== (kind === "file")) {
    const found = names === null ? "a file" : "a folder";
    throw new SidenetError(
      "L-OUTPUT",
      `${path} is ${found}, and a ${kind} is to be written. Name another place.`,
    );
  }
  if (names && !OURS.some((name) => names.includes(name))) {
    throw new SidenetError(
      "L-OUTPUT",
      `${path} holds no model and no adapter, so it is not replaced. Empty it first.`,
    );
  }
  const lost = names?.find((name) => !isReplaced(name));
  if (lost !== undefined) {
    throw new SidenetError(
      "L-OUTPUT",
      `${path} holds ${lost} as well, which would be lost, so it is not replaced. Write to another place, or empty it first.`,
    );
  }
}

/**
 * Makes sure, before a long run, that a file can be written at its end; one of that name is replaced then. Throws `L-OUTPUT`
 * for what is read from (`inputs`) and for names of compressed files, `L-FILE-MISSING` or `L-FILE` where there is no folder for it
 * that can be written.
 */
export async function checkOutputFile(path: string, inputs: readonly string[]): Promise<void> {
  if (/\.gz$/i.test(path)) {
    throw new SidenetError("L-OUTPUT", `${path}: what is written is not compressed. Leave out the .gz.`);
  }
  const real = await realpath(path).catch(() => null);
  if (real !== null) {
    for (const input of inputs) {
      if ((await realpath(input).catch(() => null)) !== real) continue;
      throw new SidenetError(
        "L-OUTPUT",
        `${path} is read from, and would be replaced. Write to another place.`,
      );
    }
    if ((await stat(path)).isDirectory())
      throw new SidenetError(
        "L-OUTPUT",
        `${path} is a folder, and a file is to be written. Name another place.`,
      );
  }
  const place = (await isStream(path)) ? path : dirname(real ?? path); // a file is replaced
  await access(place, constants.W_OK).catch((cause: unknown) => {
    throw fileError(place, cause);
  });
}

/** An error that names the folder that was asked for, and not the temporary one. */
function underItsName(cause: unknown, temporary: string, path: string): SidenetError {
  if (!(cause instanceof SidenetError)) return fileError(path, cause);
  if (!cause.message.includes(temporary)) return cause;
  return new SidenetError(cause.code, cause.text.replaceAll(temporary, path), { cause });
}

/**
 * Fills a folder that appears under its name when `fill` is done, whole or not at all: `fill` gets a temporary folder beside
 * it. What stood there before is replaced at the end. Throws `L-FILE`, and what `fill` throws, by the name that was asked
 * for, with nothing left behind.
 */
export async function writeFolderAtomic<T>(path: string, fill: (folder: string) => Promise<T>): Promise<T> {
  const target = await targetOf(path);
  return withTemporary(target, "tmp", async (temporary) => {
    try {
      await makeFolder(dirname(target));
      await mkdir(temporary);
      const result = await fill(temporary);
      await withTemporary(target, "old", async (replaced) => {
        if ((await namesIn(target)) !== null) await rename(target, replaced);
        await rename(temporary, target);
      });
      await syncFolder(dirname(target));
      return result;
    } catch (cause) {
      throw underItsName(cause, temporary, path);
    }
  });
}
