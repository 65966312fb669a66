// Hostile files: whatever a file holds, reading it ends soon, in a result or in an error that names the file and a cure.
//   SIDENET_FUZZ_RUNS=20000 npx vitest run packages/ladder/test/fuzz.test.ts
// SIDENET_FUZZ_SEED draws other files; the message of a failure has the seed of the file, and the file is kept.
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { CpuDevice, SidenetError, sizeOf, TestRandom } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { memorySource } from "../src/formats/byte-source.ts";
import { readGguf } from "../src/formats/gguf.ts";
import { checkpointFromGguf } from "../src/formats/gguf-checkpoint.ts";
import { modelConfigFromGguf } from "../src/formats/gguf-config.ts";
import { tokenizerFilesFromGguf, tokenizerFromGguf } from "../src/formats/gguf-tokenizer.ts";
import { modelConfigJson } from "../src/formats/hf-config.ts";
import { openSafetensors } from "../src/formats/safetensors.ts";
import { concatBytes, encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { loraParameters } from "../src/methods/lora.ts";
import { loraConfig, peftConfigJson } from "../src/methods/lora-config.ts";
import { parseSideConfig, sideParameters } from "../src/methods/side-config.ts";
import { parseModelConfig } from "../src/model/config.ts";
import { loadWeights } from "../src/model/load-weights.ts";
import { openAdapter } from "../src/node/adapter-files.ts";
import { readRecords } from "../src/node/data/record-store.ts";
import { openModel } from "../src/node/open-model.ts";
import { loadTokenizer } from "../src/text/tokenizer.ts";
import { mutateBytes, mutateJson, mutateValue } from "./fuzz-mutations.ts";
import { buildGguf, llamaMetadata, llamaTensors, numbers, strings } from "./gguf-builder.ts";
import { SIDE } from "./golden-cases.ts";
import { drawWeights, MODEL } from "./model-folder.ts";
import { byteTokenizer } from "./tiny-tokenizer.ts";

const { SIDENET_FUZZ_RUNS = "2000", SIDENET_FUZZ_SEED = "1" } = process.env;
/** Of one kind; all kinds together have at least SIDENET_FUZZ_RUNS inputs, or as many as fit the time of a CI run. */
const RUNS = Math.ceil(Number(SIDENET_FUZZ_RUNS) / 9);
const LONG = process.env.SIDENET_FUZZ_RUNS !== undefined;
const CI_SECONDS = LONG ? 3600 : 4;
/** For one file, on a busy machine; a loop over a count that the file claims takes longer. */
const SLOWEST_MS = 10_000;
/** Files are kilobytes; so is, a hundred times over, what reading them may take. */
const MOST_MEMORY = 400e6;

const folder = temporaryFolder();

interface Kind {
  /** Stands in every message. */
  readonly file: string;
  readonly make: (pick: TestRandom) => string | Uint8Array;
  readonly read: (content: string | Uint8Array, file: string) => Promise<void>;
}

const memory = (): number => {
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
};

/** Reads one file; gives what is wrong with how that ended, or null. */
async function problemWith({ file, read }: Kind, content: string | Uint8Array): Promise<string | null> {
  const before = memory();
  const started = performance.now();
  const error = await read(content, file).then(
    () => null,
    (thrown: unknown) => thrown,
  );
  const elapsed = performance.now() - started;
  if (elapsed > SLOWEST_MS) return `took ${elapsed.toFixed(0)} ms`;
  if (memory() - before > MOST_MEMORY) return `took ${memory() - before} bytes`;
  if (error === null) return null;
  if (!(error instanceof SidenetError))
    return `threw ${error instanceof Error ? error.stack : String(error)}`;
  const text = error.message.replace(/^\[[A-Z0-9-]+\] /, "");
  if (!text.includes(file)) return `the message does not name ${file}: ${error.message.slice(0, 300)}`;
  if (text.length > 2000) return `a message of ${text.length} characters: ${error.message.slice(0, 300)}`;
  return /[.?!]$/.test(text) ? null : `the message names no cure: ${error.message}`;
}

async function fuzz(kind: Kind): Promise<void> {
  const end = performance.now() + 1000 * CI_SECONDS;
  const seed = Number(SIDENET_FUZZ_SEED) * 1_000_003;
  let run = 0;
  for (; run < RUNS && performance.now() < end; run++) {
    const content = kind.make(new TestRandom(seed + run));
    if (LONG) await writeFile(join(tmpdir(), `sidenet-fuzz-current-${kind.file}`), content); // for what never ends
    const problem = await problemWith(kind, content);
    if (problem === null) continue;
    const kept = join(tmpdir(), `sidenet-fuzz-${seed + run}-${kind.file}`);
    await writeFile(kept, content);
    throw new Error(`${kind.file} of seed ${seed + run} (kept as ${kept}): ${problem}`);
  }
  expect(run).toBeGreaterThan(20);
}

const bytesOf = (content: string | Uint8Array): Uint8Array =>
  typeof content === "string" ? new TextEncoder().encode(content) : content;
const textOf = (content: string | Uint8Array): string =>
  typeof content === "string" ? content : new TextDecoder().decode(content);

/** Parsed as files are: what is no JSON is refused by who reads the file. */
function parsed(content: string | Uint8Array, file: string): unknown {
  try {
    return JSON.parse(textOf(content));
  } catch {
    throw new SidenetError("L-JSON", `${file} is not JSON. Is it complete?`);
  }
}

const WEIGHTS = concatBytes(encodeSafetensors(drawWeights(MODEL, "F16"), { format: "pt" }));
const SMALL = concatBytes(
  encodeSafetensors({
    a: { dtype: "F32", shape: [2, 3], data: new Float32Array(6) },
    b: { dtype: "BF16", shape: [5], data: new Float32Array(5) },
    c: { dtype: "U8", shape: [3], data: new Uint8Array(3) },
  }),
);

/** A file whose header was changed as JSON, and one whose bytes were. */
function hostileSafetensors(pick: TestRandom): Uint8Array {
  if (pick.chance(0.5)) return mutateBytes(pick, SMALL);
  const length = Number(new DataView(SMALL.buffer, SMALL.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(textOf(SMALL.subarray(8, 8 + length)));
  const json = bytesOf(mutateJson(pick, header));
  const head = new Uint8Array(8);
  new DataView(head.buffer).setBigUint64(0, BigInt(json.length), true);
  return concatBytes([head, json, SMALL.subarray(8 + length)]);
}

const TOKENS = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"];
const GGUF = buildGguf({
  metadata: {
    ...llamaMetadata(),
    "tokenizer.ggml.model": { type: "string", value: "llama" },
    "tokenizer.ggml.tokens": strings(TOKENS),
    "tokenizer.ggml.scores": numbers("f32", [0, 0, 0, -1, -2, -3, -4, -5]),
    "tokenizer.ggml.token_type": numbers("i32", [2, 3, 3, 1, 1, 1, 1, 1]),
    "tokenizer.ggml.bos_token_id": { type: "u32", value: 1 },
    "tokenizer.ggml.unknown_token_id": { type: "u32", value: 0 },
  },
  tensors: llamaTensors(8),
});

const TOKENIZER = {
  ...byteTokenizer().json,
  normalizer: {
    type: "Sequence",
    normalizers: [{ type: "NFC" }, { type: "Replace", pattern: { String: "x" }, content: "y" }],
  },
  pre_tokenizer: {
    type: "Sequence",
    pretokenizers: [
      { type: "Split", pattern: { Regex: "\\p{N}" }, behavior: "Isolated", invert: false },
      { type: "ByteLevel", add_prefix_space: false, trim_offsets: true, use_regex: false },
    ],
  },
  post_processor: {
    type: "TemplateProcessing",
    single: [{ SpecialToken: { id: "<|im_start|>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
    pair: [],
    special_tokens: { "<|im_start|>": { id: "<|im_start|>", ids: [1], tokens: ["<|im_start|>"] } },
  },
};
(TOKENIZER as unknown as { model: { merges: string[][] } }).model.merges = [["a", "b"]];

const CONFIG = modelConfigJson(MODEL, "float16");
const RECORDS = [
  { text: "a text" },
  { prompt: "a", completion: "b" },
  {
    messages: [
      { role: "user", content: "hi" },
      { role: "assistant", content: "ho" },
    ],
  },
  { question: "q", choices: ["a", "b"], label: 1 },
];
const INDEX = { metadata: { total_size: 10 }, weight_map: { a: "x-1.safetensors", b: "x-2.safetensors" } };
const LORA = peftConfigJson(loraConfig("base", { rank: 2 }));

/** Tensors that fit the two adapters as they were before they were changed. */
const ADAPTERS = [
  loraParameters(loraConfig("base", { rank: 2 }), MODEL),
  sideParameters(parseSideConfig(SIDE, "SIDE"), MODEL),
].map((specs) =>
  concatBytes(
    encodeSafetensors(
      Object.fromEntries(
        specs.map(({ name, shape }) => [
          name,
          { dtype: "F32", shape, data: new Float32Array(sizeOf(shape)) },
        ]),
      ),
    ),
  ),
);

async function readRecordsOf(content: string | Uint8Array, file: string): Promise<void> {
  const path = join(folder, file);
  await writeFile(path, content);
  for await (const { record } of readRecords(path)) expect(record).toBeTypeOf("object");
}

/** A folder with a model whose one file is the hostile one; a secret lies beside it. */
async function readFolder(content: string | Uint8Array, file: string): Promise<void> {
  const path = join(folder, "model");
  await rm(path, { recursive: true, force: true });
  await mkdir(path, { recursive: true });
  await writeFile(join(folder, "outside.safetensors"), SMALL);
  await writeFile(join(path, "config.json"), JSON.stringify(CONFIG));
  if (file.startsWith("model.safetensors.index")) {
    for (const shard of ["x-1.safetensors", "x-2.safetensors"]) await writeFile(join(path, shard), SMALL);
  } else await writeFile(join(path, "model.safetensors"), WEIGHTS);
  await writeFile(join(path, file), content);
  const model = await openModel(path);
  try {
    const weights = await loadWeights(new CpuDevice(), model.config, model.checkpoint).catch(
      (error: unknown) => {
        // Config and weights that do not fit each other: the message names one of them.
        if (error instanceof SidenetError) return null;
        throw error;
      },
    );
    weights?.dispose();
  } finally {
    await model.close();
  }
}

const parquet = await readFile(fileURLToPath(new URL("fixtures/records.parquet", import.meta.url)));

const KINDS: readonly (readonly [string, Kind])[] = [
  [
    "safetensors",
    {
      file: "f.safetensors",
      make: hostileSafetensors,
      read: async (content, file) => {
        const checkpoint = await openSafetensors(memorySource(bytesOf(content), file));
        for (const tensor of checkpoint.tensors.values()) await tensor.read();
      },
    },
  ],
  [
    "GGUF",
    {
      file: "f.gguf",
      make: (pick) => mutateBytes(pick, GGUF),
      read: async (content, file) => {
        const gguf = await readGguf(memorySource(bytesOf(content), file));
        const config = await modelConfigFromGguf(gguf);
        const checkpoint = checkpointFromGguf(gguf, config);
        for (const tensor of checkpoint.tensors.values()) await tensor.readFloat32();
        (await loadWeights(new CpuDevice(), config, checkpoint)).dispose();
        const tokenizer = tokenizerFromGguf(gguf);
        tokenizer.decode(tokenizer.encode("a b ab é"));
        tokenizerFilesFromGguf(gguf);
      },
    },
  ],
  [
    "config.json",
    {
      file: "config.json",
      make: (pick) => mutateJson(pick, CONFIG),
      read: async (content, file) => {
        modelConfigJson(parseModelConfig(parsed(content, file), file), "float16");
        await readFolder(content, file);
      },
    },
  ],
  [
    "tokenizer.json",
    {
      file: "tokenizer.json",
      make: (pick) => mutateJson(pick, pick.chance(0.5) ? TOKENIZER : byteTokenizer().json),
      read: async (content, file) => {
        const tokenizer = loadTokenizer(parsed(content, file), { eos_token: "<|im_end|>" }, file);
        tokenizer.decode(tokenizer.encode("Hello, 12 naïve\u0000 <|im_end|> ab", { addSpecialTokens: true }));
      },
    },
  ],
  [
    "adapter_config.json",
    {
      file: "adapter_config.json",
      make: (pick) => mutateJson(pick, pick.chance(0.5) ? LORA : SIDE),
      read: async (content, file) => {
        const path = join(folder, "adapter");
        await mkdir(path, { recursive: true });
        await writeFile(join(path, file), content);
        await writeFile(
          join(path, "adapter_model.safetensors"),
          ADAPTERS[textOf(content).includes("LORA") ? 0 : 1],
        );
        try {
          (await openAdapter(path, new CpuDevice(), MODEL)).dispose();
        } catch (error) {
          // Sizes and tensors that do not fit each other: the message names the tensors' file.
          if (!(error instanceof SidenetError && /^L-TENSOR/.test(error.code))) throw error;
          expect(error.message).toContain(path);
        }
      },
    },
  ],
  [
    "model.safetensors.index.json",
    { file: "model.safetensors.index.json", make: (pick) => mutateJson(pick, INDEX), read: readFolder },
  ],
  [
    "JSONL",
    {
      file: "f.jsonl",
      make: (pick) => {
        const lines = Array.from({ length: pick.int(1, 5) }, () => mutateJson(pick, pick.oneOf(RECORDS)));
        return pick.chance(0.7) ? lines.join("\n") : mutateBytes(pick, bytesOf(lines.join("\n")));
      },
      read: readRecordsOf,
    },
  ],
  [
    "JSON and CSV",
    {
      file: "f.json",
      make: (pick) => {
        if (pick.chance(0.5)) return JSON.stringify(mutateValue(pick, RECORDS)) ?? "";
        return mutateBytes(pick, bytesOf('prompt,completion\n"a, ""b""",c\n1,"x\ny"\n'));
      },
      read: readRecordsOf,
    },
  ],
  ["Parquet", { file: "f.parquet", make: (pick) => mutateBytes(pick, parquet), read: readRecordsOf }],
];

describe("a hostile file", () => {
  it.each(KINDS)(
    "is read or refused by name, soon and in little memory: %s",
    (_, kind) => fuzz(kind),
    4_000_000,
  );

  it("is never a way out of its folder", async () => {
    for (const name of [
      "../outside.safetensors",
      "..",
      "/etc/passwd",
      "a/../../x",
      "..\\outside.safetensors",
      ".",
    ]) {
      const index = JSON.stringify({ weight_map: { a: name } });
      const error = await readFolder(index, "model.safetensors.index.json").catch(
        (thrown: unknown) => thrown,
      );
      // model.safetensors is not there, so the index decides
      expect((error as SidenetError).code, name).toBe("L-SAFETENSORS-INDEX");
    }
  });
});
