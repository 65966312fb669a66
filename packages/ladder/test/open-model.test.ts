import { createHash } from "node:crypto";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { SidenetError } from "@sidenet/tensor";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { requireTensor } from "../src/formats/checkpoint.ts";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { writeFileAtomic } from "../src/node/atomic-write.ts";
import { openFileSource } from "../src/node/file-source.ts";
import { openModel, openModelConfig } from "../src/node/open-model.ts";
import { buildGguf, llamaMetadata, llamaTensors } from "./gguf-builder.ts";

const CONFIG = JSON.stringify({
  architectures: ["LlamaForCausalLM"],
  vocab_size: 4,
  hidden_size: 2,
  intermediate_size: 4,
  num_hidden_layers: 1,
  num_attention_heads: 1,
});
const TOKENIZER = JSON.stringify({ model: { type: "BPE", vocab: { a: 0, b: 1 }, merges: [] } });

const weights = (...names: string[]) =>
  concatBytes(
    encodeSafetensors(
      Object.fromEntries(
        names.map((name, i) => [name, { dtype: "F32", shape: [1], data: Float32Array.of(i) }]),
      ),
    ),
  );
const index = (map: Record<string, string>) => JSON.stringify({ metadata: {}, weight_map: map });

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "sidenet-test-"));
});
afterEach(() => rm(folder, { recursive: true }));

/** Writes files into the test's folder and gives the path of one, or of the folder. */
async function put(files: Record<string, string | Uint8Array>, path = ""): Promise<string> {
  for (const [name, content] of Object.entries(files)) await writeFile(join(folder, name), content);
  return join(folder, path);
}

async function errorOf(promise: Promise<unknown>): Promise<SidenetError> {
  const error = await promise.then(
    () => null,
    (thrown: unknown) => thrown,
  );
  if (error instanceof SidenetError) return error;
  throw new Error(`wanted a SidenetError, got ${String(error)}`);
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

describe("a model on the hub", () => {
  const SHA = "0123456789abcdef0123456789abcdef01234567";
  const files: Record<string, string | Uint8Array> = {
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "README.md": "not wanted",
    "pytorch_model.bin": "not wanted",
    "model.safetensors": weights("a", "b"),
  };
  let server: Server;
  let endpoint: string;
  let asked: string[];
  let tokens: Set<string | undefined>;
  /** What the listing says of the weights' content, right or wrong. */
  let weightsHash: string;

  const sha256 = (content: string | Uint8Array) => createHash("sha256").update(content).digest("hex");
  const listing = () =>
    Object.entries(files).map(([path, content]) => ({
      type: "file",
      path,
      size: Buffer.byteLength(content as string),
      oid: createHash("sha1").update(content).digest("hex"),
      ...(path === "model.safetensors"
        ? { lfs: { oid: weightsHash, size: content.length, pointerSize: 100 } }
        : {}),
    }));

  beforeEach(async () => {
    asked = [];
    tokens = new Set();
    weightsHash = sha256(files["model.safetensors"]);
    server = createServer((request, response) => {
      const path = new URL(request.url ?? "", "http://hub").pathname;
      asked.push(path);
      tokens.add(request.headers.authorization);
      const json = (value: unknown) =>
        response.setHeader("content-type", "application/json").end(JSON.stringify(value));
      if (path === "/api/models/org/tiny/revision/main") return json({ _id: "1", id: "org/tiny", sha: SHA });
      if (path === `/api/models/org/tiny/tree/${SHA}`) return json(listing());
      const content = files[path.slice(`/org/tiny/resolve/${SHA}/`.length)];
      if (content === undefined) return response.writeHead(404).end("{}");
      const bytes = Buffer.from(content as string);
      const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range ?? "");
      response.setHeader("etag", '"tag"');
      if (!range) return response.end(bytes);
      const part = bytes.subarray(Number(range[1]), Number(range[2]) + 1);
      return response
        .writeHead(206, { "content-range": `bytes ${range[1]}-${range[2]}/${bytes.length}` })
        .end(part);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  });
  afterEach(() => new Promise((resolve) => server.close(resolve)));

  it("is downloaded into the shared cache's layout: only what is needed, and once", async () => {
    const done: string[] = [];
    const hub = {
      endpoint,
      token: "hf_secret",
      cacheDir: folder,
      onProgress: (file: string) => done.push(file),
    };
    const model = await openModel("org/tiny", hub);
    expect([...model.checkpoint.tensors.keys()]).toEqual(["a", "b"]);
    expect((await model.tokenizer()).encode("ab")).toEqual([0, 1]);
    await model.close();
    expect([...new Set(done)].sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect([...tokens]).toEqual(["Bearer hf_secret"]);
    const cache = join(folder, "models--org--tiny");
    expect(await readFile(join(cache, "refs", "main"), "utf8")).toBe(SHA);
    expect((await readdir(join(cache, "snapshots", SHA))).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "tokenizer.json",
    ]);
    expect(await readdir(join(cache, "blobs"))).toContain(weightsHash);

    asked = [];
    await (await openModel("org/tiny", hub)).close();
    expect(asked.some((path) => path.includes("/resolve/"))).toBe(false);
  });

  it("is opened from the cache when the hub does not answer", async () => {
    await (await openModel("org/tiny", { endpoint, cacheDir: folder })).close();
    const model = await openModel("org/tiny", { endpoint: "http://127.0.0.1:9", cacheDir: folder });
    expect(model.config.hiddenSize).toBe(2);
    await model.close();
  });

  it("gives its config without its weights", async () => {
    expect((await openModelConfig("org/tiny", { endpoint, cacheDir: folder })).hiddenSize).toBe(2);
    expect(asked.some((path) => path.endsWith("model.safetensors"))).toBe(false);
  });

  it("is refused when it is not there, or when other bytes come than were promised", async () => {
    const missing = await errorOf(openModel("org/none", { endpoint, cacheDir: folder }));
    expect(missing.code).toBe("L-HUB");
    expect(missing.message).toMatch(/org\/none.*404.*HF_TOKEN/);
    weightsHash = sha256("something else");
    expect((await errorOf(openModel("org/tiny", { endpoint, cacheDir: folder }))).message).toMatch(
      /L-HUB.*model\.safetensors/,
    );
    const blobs = await readdir(join(folder, "models--org--tiny", "blobs"));
    expect(blobs.some((name) => name.endsWith(".incomplete"))).toBe(false);
    expect(blobs).not.toContain(weightsHash);
  });

  it("is not asked for when the path exists", async () => {
    await mkdir(join(folder, "org", "tiny"), { recursive: true });
    await writeFile(join(folder, "org", "tiny", "config.json"), CONFIG);
    expect((await openModelConfig(join(folder, "org", "tiny"), { endpoint })).hiddenSize).toBe(2);
    expect(asked).toEqual([]);
  });
});
