/** GGUF files in parts, as llama.cpp's gguf-split writes them. */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { memorySource } from "../src/formats/byte-source.ts";
import { openGgufFile } from "../src/formats/gguf-parts.ts";
import { openGguf, openModelFiles } from "../src/formats/open-model-files.ts";
import { openFileSource } from "../src/node/file-source.ts";
import { openModel, openModelConfig } from "../src/node/open-model.ts";
import { errorOf } from "./code-of.ts";
import { buildGguf, type Field, llamaMetadata, llamaTensors, type TensorSpec } from "./gguf-builder.ts";
import { contentOf, convert } from "./model-folder.ts";

const METADATA = llamaMetadata();
const TENSORS = llamaTensors();

/** The fields of part `no` of three. */
const splitFields = (no: number, change: Record<string, Field> = {}): Record<string, Field> => ({
  "split.no": { type: "u16", value: no },
  "split.count": { type: "u16", value: 3 },
  "split.tensors.count": { type: "i32", value: TENSORS.length },
  ...change,
});

const nameOf = (no: number) => `m-0000${no + 1}-of-00003.gguf`;

/** The files of a model by their names, of which the first holds so many tensors and the second the next four. */
function partsOf(first: number): Map<string, Uint8Array> {
  const borders = [0, first, first + 4, TENSORS.length];
  return new Map(
    [0, 1, 2].map((no) => {
      const metadata = { ...(no === 0 && METADATA), ...splitFields(no) };
      return [nameOf(no), buildGguf({ metadata, tensors: TENSORS.slice(borders[no], borders[no + 1]) })];
    }),
  );
}

async function put(files: Map<string, Uint8Array>): Promise<string> {
  const folder = temporaryFolder();
  for (const [name, bytes] of files) await writeFile(join(folder, name), bytes);
  return folder;
}

/** Opens these files, and else those on the disk; says how many of these are open. */
function counting(files: ReadonlyMap<string, Uint8Array | null>) {
  let opened = 0;
  const open = async (file: string) => {
    const bytes = files.get(file);
    if (!bytes) return openFileSource(file);
    opened++;
    return { ...memorySource(bytes, file), close: async () => void opened-- };
  };
  return { open, opened: () => opened };
}

describe.each([3, 0])("a GGUF file in parts, of which the first has %i tensors", (first) => {
  it("is the model of the whole file, by any part or by the folder", async () => {
    const whole = join(
      await put(new Map([["w.gguf", buildGguf({ metadata: METADATA, tensors: TENSORS })]])),
      "w.gguf",
    );
    const wanted = await contentOf(whole);
    const folder = await put(partsOf(first));
    for (const path of [folder, ...[0, 1, 2].map((no) => join(folder, nameOf(no)))]) {
      expect(await contentOf(path)).toEqual(wanted);
      expect(await openModelConfig(path)).toEqual(wanted.config);
    }
    await convert(join(folder, nameOf(1)), join(folder, "out"), "f32");
    expect((await contentOf(join(folder, "out"))).values).toEqual(wanted.values);
    await convert(join(folder, nameOf(1)), join(folder, "out.gguf"), "f32");
    const { metadata, close } = (await openModel(join(folder, "out.gguf"))).checkpoint;
    expect(metadata.get("general.name")).toBe("m");
    await close();
  });

  it("is opened from the files of a page, whatever the case of their ending", async () => {
    const named = (change: (name: string) => string) =>
      [...partsOf(first)].map(([name, bytes]) => new File([bytes as Uint8Array<ArrayBuffer>], change(name)));
    const files = named((name) => name);
    for (const given of [files, named((name) => name.replace(".gguf", ".GGUF"))]) {
      const { checkpoint } = await openModelFiles(given, "mine");
      expect(checkpoint.tensors.size).toBe(TENSORS.length);
    }
    const error = await errorOf(openModelFiles(files.slice(0, 2), "mine"));
    expect(error.message).toMatch(
      /L-FILE-MISSING\] m-00001-of-00003.* mine has no file m-00003-of-00003\.gguf/,
    );
  });
});

describe("the parts of a GGUF file", () => {
  it("are closed with it", async () => {
    const { open, opened } = counting(partsOf(3));
    const { source } = await openGgufFile(nameOf(1), open);
    expect(opened()).toBe(3);
    await source.close();
    expect(opened()).toBe(0);
  });

  it("are closed where they are of no model that can be read", async () => {
    const metadata = { ...llamaMetadata("mamba"), ...splitFields(0) };
    const first = buildGguf({ metadata, tensors: TENSORS.slice(0, 3) });
    const { open, opened } = counting(partsOf(3).set(nameOf(0), first));
    expect((await errorOf(openGguf("m", nameOf(0), open))).message).toContain("mamba");
    expect(opened()).toBe(0);
  });
});

describe("parts that do not belong together are refused by name, and closed:", () => {
  const part = (no: number, change: Record<string, Field>, tensors: TensorSpec[]) =>
    buildGguf({ metadata: splitFields(no, change), tensors });
  it.each<[string, number, Record<string, Uint8Array | null>, RegExp]>([
    [
      "one is missing",
      0,
      { [nameOf(1)]: null },
      /L-FILE-MISSING\] m-00001-of-00003\.gguf .* m-00002-of-00003\.gguf: /,
    ],
    [
      "the first is missing",
      2,
      { [nameOf(0)]: null },
      /L-FILE-MISSING\] m-00003-of.* m-00001-of-00003\.gguf: /,
    ],
    [
      "one is no GGUF file",
      0,
      { [nameOf(2)]: new Uint8Array(30) },
      /L-GGUF-MAGIC\] m-00001.* m-00003-of-00003\.gguf: /,
    ],
    [
      "one has another's place",
      0,
      { [nameOf(1)]: part(2, {}, []) },
      /L-GGUF-PARTS\] m-00002-of-00003\.gguf: its split\.no is 2, wanted 1 by its name and m-00001-of-00003\.gguf/,
    ],
    [
      "one is of another model",
      0,
      { [nameOf(1)]: part(1, { "split.tensors.count": { type: "i32", value: 4 } }, TENSORS.slice(3, 7)) },
      /L-GGUF-PARTS\] m-00002-of-00003\.gguf: its split\.tensors\.count is 4, /,
    ],
    [
      "one is no part",
      0,
      { [nameOf(1)]: buildGguf({}) },
      /m-00002-of-00003\.gguf: its split\.no is undefined/,
    ],
    [
      "two hold a tensor",
      0,
      { [nameOf(1)]: part(1, {}, TENSORS.slice(2, 7)) },
      /L-GGUF-PARTS\] m-00002-of-00003\.gguf: it holds "blk\.0\.attn_q\.weight", and so does m-00001-of-00003\.gguf/,
    ],
    [
      "a tensor is missing",
      1,
      { [nameOf(1)]: part(1, {}, TENSORS.slice(3, 6)) },
      /L-GGUF-PARTS\] m-00001-of-00003\.gguf: its 3 parts hold 10 tensors, not 11/,
    ],
  ])("%s", async (_, given, change, message) => {
    const files = new Map<string, Uint8Array | null>([...partsOf(3), ...Object.entries(change)]);
    const { open, opened } = counting(files);
    expect((await errorOf(openGgufFile(nameOf(given), open))).message).toMatch(message);
    expect(opened()).toBe(0);
  });

  it("one has another name than its place", async () => {
    const [bytes] = partsOf(3).values();
    for (const name of ["m.gguf", "m-00001-of-00002.gguf"]) {
      const error = await errorOf(openModel(join(await put(new Map([[name, bytes]])), name)));
      expect(error.message).toMatch(new RegExp(`L-GGUF-PARTS\\].*${name}: it is one of 3 parts`));
    }
  });

  it("several sets in a folder are listed by their first parts", async () => {
    const files = new Map(
      [...partsOf(3)].flatMap(
        ([name, bytes]) =>
          [
            [name, bytes],
            [`o${name}`, bytes],
          ] as const,
      ),
    );
    const error = await errorOf(openModel(await put(files)));
    expect(error.message).toContain("Name one of its models: m-00001-of-00003.gguf, om-00001-of-00003.gguf.");
  });
});
