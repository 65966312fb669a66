import { spawnSync } from "node:child_process";
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import type { HubOptions } from "../src/node/hub.ts";
import { openModel, openModelConfig } from "../src/node/open-model.ts";
import { errorOf } from "./code-of.ts";
import { FakeHub, type Fault, SHA, sha256 } from "./fake-hub.ts";
import { CONFIG, TOKENIZER, weightsFile } from "./small-files.ts";

const weights = (...names: string[]) => weightsFile(40, names);
const WEIGHTS = weights("a", "b");

let folder: string;
let hub: FakeHub;
beforeEach(async () => {
  folder = temporaryFolder();
  hub = await new FakeHub({
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "README.md": "not wanted",
    "pytorch_model.bin": "not wanted",
    "model.safetensors": WEIGHTS,
  }).start();
});
afterEach(() => hub.stop());

const cache = (...parts: string[]): string => join(folder, "models--org--tiny", ...parts);
const options = (more: HubOptions = {}): HubOptions => ({
  endpoint: hub.endpoint,
  cacheDir: folder,
  retry: { delayMs: 1, stallMs: 500 },
  ...more,
});

/** Opens the model, and checks that its weights are the hub's. */
async function fetchWhole(more: HubOptions = {}): Promise<void> {
  const model = await openModel("org/tiny", options(more));
  expect([...model.checkpoint.tensors.keys()]).toEqual(["a", "b"]);
  expect(await model.checkpoint.tensors.get("b")!.readFloat32()).toEqual(new Float32Array(40).fill(1));
  await model.close();
  expect((await readdir(cache("blobs"))).filter((name) => name.endsWith(".incomplete"))).toEqual([]);
}

const fail = (...faults: Fault[]): void => void hub.faults.set("model.safetensors", faults);

describe("a model on the hub", () => {
  it("is downloaded into the shared cache's layout: only what is needed, and once", async () => {
    hub.token = "hf_secret";
    const done = new Map<string, [number, number]>();
    const onProgress = (file: string, bytes: number, total: number) => done.set(file, [bytes, total]);
    await fetchWhole({ token: "hf_secret", onProgress });
    expect([...done.keys()].sort()).toEqual(["config.json", "model.safetensors", "tokenizer.json"]);
    expect(done.get("model.safetensors")).toEqual([WEIGHTS.length, WEIGHTS.length]);
    expect(await readFile(cache("refs", "main"), "utf8")).toBe(SHA);
    expect((await readdir(cache("snapshots", SHA))).sort()).toEqual([
      "config.json",
      "model.safetensors",
      "tokenizer.json",
    ]);
    expect(await readdir(cache("blobs"))).toContain(sha256(WEIGHTS));
    hub.asked = [];
    await fetchWhole({ token: "hf_secret" });
    expect(hub.asked.some(({ path }) => path.includes("/resolve/"))).toBe(false);
  });

  it.each([
    [
      "config.json",
      "tiny-Q4_K_M.gguf",
      /^org\/tiny: .* no config\.json, but GGUF files such as tiny-Q4_K_M\.gguf\. Download/,
    ],
    ["config.json", "TINY.GGUF", /^org\/tiny: .* but GGUF files such as TINY\.GGUF\. Download/],
    [
      "model.safetensors",
      "other.bin",
      /^org\/tiny: .* no model\.safetensors, which is needed\. Choose a repository/,
    ],
  ])("is refused by name without %s", async (missing, other, text) => {
    delete hub.files[missing];
    hub.files[other] = "not wanted";
    const error = await errorOf(openModel("org/tiny", options()));
    expect([error.code, error.text]).toEqual(["L-HUB", expect.stringMatching(text)]);
    expect(hub.asked.some(({ path }) => path.includes("/resolve/"))).toBe(false);
  });

  it("is downloaded once for callers at the same time", async () => {
    await Promise.all([fetchWhole(), fetchWhole(), fetchWhole()]);
    for (const name of ["config.json", "tokenizer.json", "model.safetensors"])
      expect(hub.downloadsOf(name)).toHaveLength(1);
  });

  it("comes in shards where it has no single file, and without them where it has", async () => {
    const map = JSON.stringify({ weight_map: { a: "model-1.safetensors", b: "model-2.safetensors" } });
    hub.files["model-1.safetensors"] = weights("a");
    hub.files["model-2.safetensors"] = weights("b");
    hub.files["model.safetensors.index.json"] = map;
    await fetchWhole();
    expect(hub.downloadsOf("model-1.safetensors")).toEqual([]);
    delete hub.files["model.safetensors"];
    await rm(folder, { recursive: true });
    const model = await openModel("org/tiny", options());
    expect([...model.checkpoint.tensors.keys()]).toEqual(["a", "b"]);
    await model.close();
  });

  it("gives its config without its weights, which are then fetched when they are wanted", async () => {
    expect((await openModelConfig("org/tiny", options())).hiddenSize).toBe(2);
    expect(hub.downloadsOf("model.safetensors")).toEqual([]);
    const offline = await errorOf(openModel("org/tiny", options({ offline: true })));
    expect(offline.code).toBe("L-HUB");
    expect(offline.message).toMatch(/org\/tiny.*HF_HUB_OFFLINE/);
    await fetchWhole();
  });

  it("works without the hub once it is in the cache, and not with a part of it", async () => {
    await fetchWhole();
    hub.asked = [];
    await fetchWhole({ offline: true });
    await fetchWhole({ revision: SHA });
    expect(hub.asked).toEqual([]);
    await hub.stop();
    await fetchWhole();
    await rm(cache("snapshots", SHA, "model.safetensors"));
    expect((await errorOf(openModel("org/tiny", options({ retry: { attempts: 1 } })))).code).toBe("L-HUB");
    hub = await new FakeHub({}).start();
  });

  it("is not asked for when the path exists", async () => {
    await mkdir(join(folder, "org", "tiny"), { recursive: true });
    await writeFile(join(folder, "org", "tiny", "config.json"), CONFIG);
    expect((await openModelConfig(join(folder, "org", "tiny"), options())).hiddenSize).toBe(2);
    expect(hub.asked).toEqual([]);
  });

  it("is found where HF_ENDPOINT, HF_HOME and HF_TOKEN say", async () => {
    hub.token = "hf_from_env";
    const env = { HF_ENDPOINT: `${hub.endpoint}/`, HF_HOME: join(folder, "home"), HF_TOKEN: "hf_from_env" };
    const before = { ...process.env };
    Object.assign(process.env, env);
    try {
      expect((await openModelConfig("org/tiny")).hiddenSize).toBe(2);
    } finally {
      for (const key of Object.keys(env)) {
        if (before[key] === undefined) delete process.env[key];
        else process.env[key] = before[key];
      }
    }
    expect(await readdir(join(folder, "home", "hub"))).toEqual(["models--org--tiny"]);
  });
});

describe("a download", () => {
  it("goes on where the connection dropped, with one request each for what is missing", async () => {
    fail({ kind: "drop", afterBytes: 100 }, { kind: "drop", afterBytes: 50 });
    await fetchWhole();
    expect(hub.downloadsOf("model.safetensors").map(({ range }) => range)).toEqual([
      undefined,
      "bytes=100-",
      "bytes=150-",
    ]);
  });

  it("is not given up while it gets on, however often the connection drops", async () => {
    fail(...Array.from({ length: 12 }, (): Fault => ({ kind: "drop", afterBytes: 20 })));
    await fetchWhole({ retry: { delayMs: 1, attempts: 2 } });
  });

  it("drops a connection that brings nothing more", async () => {
    fail({ kind: "stall", afterBytes: 64 });
    await fetchWhole({ retry: { delayMs: 1, stallMs: 100 } });
    expect(hub.downloadsOf("model.safetensors")[1].range).toBe("bytes=64-");
  });

  it("is gone on with by a later process, after one that was ended", async () => {
    const blob = cache("blobs", sha256(WEIGHTS));
    const { pid } = spawnSync(process.execPath, ["--version"]); // no longer alive
    await mkdir(cache("blobs"), { recursive: true });
    await writeFile(`${blob}.${pid}.incomplete`, WEIGHTS.subarray(0, 200));
    await fetchWhole();
    expect(hub.downloadsOf("model.safetensors").map(({ range }) => range)).toEqual(["bytes=200-"]);
  });

  it("starts over when what was left from before is wrong", async () => {
    const blob = cache("blobs", sha256(WEIGHTS));
    const { pid } = spawnSync(process.execPath, ["--version"]);
    await mkdir(cache("blobs"), { recursive: true });
    await writeFile(`${blob}.${pid}.incomplete`, new Uint8Array(200));
    await fetchWhole();
    expect(hub.downloadsOf("model.safetensors").map(({ range }) => range)).toEqual(["bytes=200-", undefined]);
  });

  it.each<Fault["kind"]>(["ignore range", "wrong range"])(
    "stands a server that answers a range with other bytes (%s)",
    async (kind) => {
      fail({ kind: "drop", afterBytes: 100 }, { kind } as Fault);
      await fetchWhole();
    },
  );

  it("waits as long as a busy server asks for", async () => {
    fail({ kind: "status", status: 429, retryAfter: "0.05" }, { kind: "status", status: 503 });
    hub.faults.set("api", [{ kind: "status", status: 429, retryAfter: "0" }]);
    const started = performance.now();
    await fetchWhole();
    expect(performance.now() - started).toBeGreaterThan(50);
  });

  it("follows redirects to other hosts, and keeps the token to itself", async () => {
    hub.token = "hf_secret";
    const other = await new FakeHub(hub.files).start();
    fail({ kind: "redirect", to: other.endpoint }, { kind: "redirect", to: other.endpoint });
    other.faults.set("model.safetensors", [{ kind: "drop", afterBytes: 30 }]);
    await fetchWhole({ token: "hf_secret" });
    expect(other.asked.map(({ range }) => range)).toEqual([undefined, "bytes=30-"]);
    expect(other.asked.every(({ authorization }) => authorization === undefined)).toBe(true);
    await other.stop();
  });

  it.each<[string, () => void, RegExp]>([
    ["other bytes than were promised", () => fail({ kind: "other bytes" }), /model\.safetensors.*hash/],
    ["more bytes than were promised", () => fail({ kind: "more bytes" }), /model\.safetensors: more than/],
    [
      "another hash than the listing's",
      () => Object.assign(hub.listed, { "config.json": { oid: "0".repeat(40) } }),
      /config\.json.*hash/,
    ],
    ["a refusal", () => fail({ kind: "status", status: 403 }), /model\.safetensors.*403.*HF_TOKEN/],
    [
      "no token where one is needed",
      () => Object.assign(hub, { token: "hf_other" }),
      /org\/tiny.*401.*HF_TOKEN/,
    ],
    [
      "a server that stays busy",
      () => fail(...Array.from({ length: 9 }, (): Fault => ({ kind: "status", status: 500 }))),
      /org\/tiny.*answered 500/,
    ],
  ])("is refused on %s, by name and with nothing under the file's name", async (_, prepare, message) => {
    prepare();
    const error = await errorOf(openModel("org/tiny", options({ retry: { delayMs: 1, attempts: 3 } })));
    expect(error.code).toBe("L-HUB");
    expect(error.message).toMatch(message);
    const blobs = await readdir(cache("blobs")).catch(() => []);
    expect(blobs).not.toContain(sha256(WEIGHTS));
    expect((await errorOf(openModel("org/none", options()))).message).toMatch(
      /org\/none.*(404|401).*HF_TOKEN/,
    );
  });

  it("writes nowhere but into the cache, whatever a listing says", async () => {
    for (const path of ["../../evil.json", "config.json/../../x", "/etc/model.safetensors"]) {
      hub.files[path] = "evil";
    }
    hub.listed["tokenizer.json"] = { path: "model/../../tokenizer.json" };
    await openModel("org/tiny", options()).then((model) => model.close());
    expect((await readdir(folder, { recursive: true })).filter((name) => name.includes("evil"))).toEqual([]);
    expect(await readdir(folder)).toEqual(["models--org--tiny"]);
    expect((await errorOf(openModel("org/tiny", options({ revision: "../../x" })))).message).toContain(
      "revision",
    );
  });
});
