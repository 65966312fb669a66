import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { requireTensor } from "../src/formats/checkpoint.ts";
import type { FileLike } from "../src/formats/file-set.ts";
import { openModelFiles } from "../src/formats/open-model-files.ts";
import { writeFileAtomic } from "../src/node/atomic-write.ts";
import { openFileSource } from "../src/node/file-source.ts";
import { openModel, openModelConfig } from "../src/node/open-model.ts";
import { errorOf } from "./code-of.ts";
import { buildGguf, llamaMetadata, llamaTensors } from "./gguf-builder.ts";
import { CONFIG, TOKENIZER, weightsFile } from "./small-files.ts";

const weights = (...names: string[]) => weightsFile(1, names);
const index = (map: Record<string, string>) => JSON.stringify({ metadata: {}, weight_map: map });

let folder: string;
beforeEach(() => {
  folder = temporaryFolder();
});

/** Writes files into the test's folder and gives the path of one, or of the folder. */
async function put(files: Record<string, string | Uint8Array>, path = ""): Promise<string> {
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content);
  return join(folder, path);
}

/** Names of the tensors that a path leads to. */
async function tensorsOf(path: string): Promise<string[]> {
  const model = await openModel(path);
  try {
    for (const name of model.checkpoint.tensors.keys()) await requireTensor(model.checkpoint, name).read();
    return [...model.checkpoint.tensors.keys()].sort();
  } finally {
    await model.close();
  }
}

describe("a model on disk", () => {
  it("is opened from a folder, in one file or in shards, from a file beside its config, and from a GGUF", async () => {
    const base = { "config.json": CONFIG };
    expect(await tensorsOf(await put({ ...base, "model.safetensors": weights("a", "b") }))).toEqual([
      "a",
      "b",
    ]);
    expect(
      await tensorsOf(await put({ ...base, "other.safetensors": weights("c") }, "other.safetensors")),
    ).toEqual(["c"]);
    await rm(join(folder, "model.safetensors"));
    expect(await tensorsOf(folder)).toEqual(["c"]);
    const shards = { "x-1.safetensors": weights("d"), "x-2.safetensors": weights("e", "unlisted") };
    const map = index({ d: "x-1.safetensors", e: "x-2.safetensors" });
    expect(await tensorsOf(await put({ ...shards, "model.safetensors.index.json": map }))).toEqual([
      "d",
      "e",
      "unlisted",
    ]);

    const gguf = buildGguf({ metadata: llamaMetadata(), tensors: llamaTensors() });
    expect(await tensorsOf(await put({ "tiny.gguf": gguf }, "tiny.gguf"))).toContain(
      "model.embed_tokens.weight",
    );
    await rm(join(folder, "config.json"));
    expect(await tensorsOf(folder)).toContain("model.embed_tokens.weight");
  });

  it("needs nothing but its config to be planned", async () => {
    const path = await put({ "config.json": CONFIG });
    expect((await openModelConfig(path)).hiddenSize).toBe(2);
    expect((await openModelConfig(join(path, "config.json"))).hiddenSize).toBe(2);
    expect(
      (
        await openModelConfig(
          await put(
            { "t.gguf": buildGguf({ metadata: llamaMetadata(), tensors: llamaTensors() }) },
            "t.gguf",
          ),
        )
      ).hiddenSize,
    ).toBe(8);
  });

  it("has its tokenizer in the folder, or says which files were expected there", async () => {
    const path = await put({
      "config.json": CONFIG,
      "model.safetensors": weights("a"),
      "tokenizer.model": "",
    });
    const model = await openModel(path);
    const error = await errorOf(model.tokenizer());
    expect(error.code).toBe("L-TOKENIZER-MISSING");
    for (const part of [path, "tokenizer.json", "tokenizer_config.json", "tokenizer.model"])
      expect(error.message).toContain(part);
    await model.close();
    await put({ "tokenizer.json": TOKENIZER, "tokenizer_config.json": JSON.stringify({ eos_token: "b" }) });
    const again = await openModel(path);
    const tokenizer = await again.tokenizer();
    expect(tokenizer.encode("ab")).toEqual([0, 1]);
    expect(tokenizer.eosIds).toEqual([1]);
    expect(await again.tokenizer()).toBe(tokenizer);
    await again.close();
  });

  it("ends a text at the ids of generation_config.json too, or of the config, as far as they are tokens", async () => {
    const path = await put({
      "config.json": JSON.stringify({ ...JSON.parse(CONFIG), eos_token_id: [0, 3] }),
      "model.safetensors": weights("a"),
      "tokenizer.json": TOKENIZER,
      "tokenizer_config.json": JSON.stringify({ eos_token: "b" }),
    });
    const eosIds = async () => {
      const model = await openModel(path);
      await model.close();
      return (await model.tokenizer()).eosIds;
    };
    expect(await eosIds()).toEqual([1, 0]);
    await put({ "generation_config.json": '{"eos_token_id":1}' });
    expect(await eosIds()).toEqual([1]);
    await put({ "generation_config.json": '{"eos_token_id":"b"}' });
    await expect(eosIds()).rejects.toThrow(/L-CONFIG\].*generation_config\.json.*eos_token_id/);
  });

  it.each<[string, Record<string, string | Uint8Array>, string, string]>([
    ["a path that leads nowhere", {}, "none", "L-MODEL-MISSING"],
    ["an empty folder", {}, "", "L-MODEL-MISSING"],
    ["a folder without weights", { "config.json": CONFIG, "pytorch_model.bin": "" }, "", "L-MODEL-MISSING"],
    [
      "a safetensors file alone",
      { "model.safetensors": weights("a") },
      "model.safetensors",
      "L-MODEL-MISSING",
    ],
    [
      "two files and no index",
      { "config.json": CONFIG, "a.safetensors": weights("a"), "b.safetensors": weights("b") },
      "",
      "L-MODEL-MISSING",
    ],
    ["a config that is no JSON", { "config.json": "{" }, "", "L-JSON"],
    [
      "a shard that is missing",
      { "config.json": CONFIG, "model.safetensors.index.json": index({ a: "gone.safetensors" }) },
      "",
      "L-FILE-MISSING",
    ],
    [
      "a truncated weights file",
      { "config.json": CONFIG, "model.safetensors": weights("a").subarray(0, 60) },
      "",
      "L-SAFETENSORS-TRUNCATED",
    ],
    [
      "a truncated GGUF",
      { "t.gguf": buildGguf({ metadata: llamaMetadata(), tensors: llamaTensors() }).subarray(0, 900) },
      "t.gguf",
      "L-GGUF-TRUNCATED",
    ],
    ["some other file", { "notes.txt": "hello" }, "notes.txt", "L-GGUF-MAGIC"],
  ])("%s is refused", async (_, files, path, code) => {
    expect((await errorOf(openModel(await put(files, path)))).code).toBe(code);
  });

  it("of a folder with several GGUF files and no config, the error names them", async () => {
    const error = await errorOf(openModel(await put({ "b.Q8_0.gguf": "", "a.Q4_1.gguf": "" }, "")));
    expect(error.message).toMatch(
      /L-MODEL-MISSING.*config\.json\. Name one .*: a\.Q4_1\.gguf, b\.Q8_0\.gguf\./,
    );
  });
});

describe("a model in the files of a page", () => {
  const file = (name: string, content: string | Uint8Array) => new File([content], name);
  const inFolder = (path: string, content: string | Uint8Array) =>
    Object.assign(file(path.split("/").at(-1)!, content), { webkitRelativePath: path });
  const shards = [
    inFolder("m/config.json", JSON.stringify({ ...JSON.parse(CONFIG), eos_token_id: [0] })),
    inFolder("m/x-1.safetensors", weights("d")),
    inFolder("m/x-2.safetensors", weights("e")),
    inFolder("m/model.safetensors.index.json", index({ d: "x-1.safetensors", e: "x-2.safetensors" })),
    inFolder("m/tokenizer.json", TOKENIZER),
    inFolder("m/chat_template.jinja", "{{ messages[0].content }}!"),
    inFolder("m/onnx/config.json", "{"),
  ];

  it("says of a web page that it is one: servers answer with their start page where there is no file", async () => {
    const error = await errorOf(openModelFiles([file("config.json", "<!doctype html>")], "mine"));
    expect(error.message).toMatch(/L-JSON\] config\.json is not JSON.*web page/);
  });

  it("is opened as from a disk: a folder with shards and all that its tokenizer has, or a GGUF", async () => {
    const model = await openModelFiles(shards, "mine");
    expect(model.name).toBe("mine");
    expect([...model.checkpoint.tensors.keys()]).toEqual(["d", "e"]);
    expect(await requireTensor(model.checkpoint, "e").read()).toEqual(Float32Array.of(0));
    const tokenizer = await model.tokenizer();
    expect(tokenizer.eosIds).toEqual([0]);
    expect(tokenizer.chatTemplate()!.pieces([{ role: "user", content: "a" }])[0].text).toBe("a!");
    const gguf = file("t.gguf", buildGguf({ metadata: llamaMetadata(), tensors: llamaTensors() }));
    expect((await openModelFiles([gguf], "tiny")).config.hiddenSize).toBe(8);
  });

  it("says which file is missing, or can no longer be read", async () => {
    const without = (name: string) => shards.filter((one) => one.name !== name);
    const message = async (files: Iterable<FileLike>) =>
      (await errorOf(openModelFiles(files, "mine"))).message;
    expect(await message(without("config.json"))).toMatch(/L-MODEL-MISSING\] mine: it holds no config\.json/);
    const adapter = new File(["{}"], "adapter_config.json");
    expect(await message([adapter])).toMatch(/L-MODEL-MISSING\] mine: .*give it to --adapter/);
    expect(await message(without("x-2.safetensors"))).toMatch(
      /L-FILE-MISSING.*mine has no file x-2\.safetensors/,
    );
    const reading = (arrayBuffer: () => Promise<ArrayBuffer>) => {
      const config: FileLike = { name: "config.json", size: 9, slice: () => ({ arrayBuffer }) };
      return message([...without("config.json"), config]);
    };
    expect(await reading(() => Promise.reject(new Error("The file has changed.")))).toBe(
      "[L-FILE] config.json cannot be read: The file has changed. Has it changed? Choose it again.",
    );
    expect(await reading(async () => new ArrayBuffer(12))).toMatch(
      /L-FILE\] config\.json cannot be read: 9 bytes were asked for, 12 came/,
    );
  });
});

describe("a file source", () => {
  it("gives any range, and refuses what lies outside or is no file", async () => {
    const source = await openFileSource(await put({ x: Uint8Array.of(1, 2, 3, 4, 5) }, "x"));
    expect(source.sizeBytes).toBe(5);
    expect(await source.read(1, 3)).toEqual(Uint8Array.of(2, 3, 4));
    expect(await source.read(5, 0)).toEqual(new Uint8Array(0));
    expect((await errorOf(source.read(3, 3))).code).toBe("L-RANGE");
    await writeFile(join(folder, "x"), Uint8Array.of(1));
    expect((await errorOf(source.read(0, 5))).message).toMatch(/became shorter/);
    await source.close();
    expect((await errorOf(openFileSource(join(folder, "none")))).code).toBe("L-FILE-MISSING");
    expect((await errorOf(openFileSource(folder))).code).toBe("L-FILE");
  });

  it("reads past 4 GiB", async () => {
    const path = join(folder, "sparse");
    const { open } = await import("node:fs/promises");
    const file = await open(path, "w");
    await file.write(Uint8Array.of(42), 0, 1, 5 * 2 ** 30); // a hole of 5 GiB takes no room on disk
    await file.close();
    const source = await openFileSource(path);
    expect(await source.read(5 * 2 ** 30 - 1, 2)).toEqual(Uint8Array.of(0, 42));
    await source.close();
  });
});

describe("an atomic write", () => {
  it("shows the old file or the whole new one, and leaves nothing else behind", async () => {
    const path = await put({ f: "old" }, "f");
    function* failing() {
      yield Uint8Array.of(1, 2, 3);
      throw new Error("the disk is full");
    }
    expect((await errorOf(writeFileAtomic(path, failing()))).message).toContain("the disk is full");
    expect(await readFile(path, "utf8")).toBe("old");
    await writeFileAtomic(path, [Uint8Array.of(104), Uint8Array.of(105)]);
    expect(await readFile(path, "utf8")).toBe("hi");
    await writeFileAtomic(path, "text ü");
    expect(await readFile(path, "utf8")).toBe("text ü");
    expect(await readdir(folder)).toEqual(["f"]);
    expect((await errorOf(writeFileAtomic(join(folder, "no", "f"), ""))).code).toBe("L-FILE-MISSING");
  });
});
