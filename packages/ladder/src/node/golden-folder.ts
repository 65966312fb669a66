import { readdir, stat } from "node:fs/promises";
import { basename, join, relative, resolve, sep } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { type CaseLocation, caseKind } from "../check/check.ts";
import type { CaseFolder } from "../check/golden-case.ts";
import { fileError } from "./file-source.ts";
import { readJsonFile } from "./json-file.ts";
import { openSafetensorsFile } from "./safetensors-file.ts";

/** Golden folders are three deep; a folder that is deeper than this is something else. */
const MAX_DEPTH = 6;

function diskFolder(path: string, name: string): CaseFolder {
  return {
    name,
    has: (file) =>
      stat(join(path, file)).then(
        (stats) => stats.isFile(),
        () => false,
      ),
    json: (file) => readJsonFile(join(path, file)),
    open: (file) => openSafetensorsFile(join(path, file)),
    folder: (other) => diskFolder(resolve(path, other), join(name, other).split(sep).join("/")),
  };
}

/**
 * Every golden case in a folder, which may itself be one, in the order of their names: paths from the folder.
 * Throws `L-FILE-MISSING` or `L-FILE`, and `L-CHECK-EMPTY` when there is none.
 */
export async function findCases(root: string): Promise<CaseLocation[]> {
  const found: CaseLocation[] = [];
  const visit = async (path: string, depth: number): Promise<void> => {
    const entries = await readdir(path, { withFileTypes: true }).catch((cause: unknown) => {
      throw fileError(path, cause);
    });
    const kind = caseKind(new Set(entries.map((entry) => entry.name)));
    if (kind) {
      const name = relative(root, path).split(sep).join("/") || basename(resolve(path));
      found.push({ kind, folder: diskFolder(path, name) });
      return;
    }
    if (depth === MAX_DEPTH) return;
    const folders = entries.filter((entry) => entry.isDirectory() && !/^(\.|node_modules$)/.test(entry.name));
    for (const { name } of folders.sort((a, b) => (a.name < b.name ? -1 : 1)))
      await visit(join(path, name), depth + 1);
  };
  await visit(root, 0);
  if (found.length === 0) {
    throw new SidenetError(
      "L-CHECK-EMPTY",
      `${root} holds no golden case: no folder in it has params.json, or config.json with expected.safetensors.`,
    );
  }
  return found;
}
