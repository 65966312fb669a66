// A run with a prefix, from files to files: what is trained after a text is asked after it.
import { mkdtemp, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { encodeSafetensors } from "../src/formats/safetensors-write.ts";
import { readBackboneSetup } from "../src/node/adapter-files.ts";
import { exportAdapter } from "../src/node/export-adapter.ts";
import { openInference } from "../src/node/inference.ts";
import { trainRun } from "../src/node/train-run.ts";
import { afterPrefix, encodePrefix } from "../src/text/prefix-text.ts";
import { loadTokenizer, startId } from "../src/text/tokenizer.ts";
import { sidenet } from "./capture.ts";
import { cpu, tinyArguments, tinyOptions, traceOf, writeTinyFiles } from "./tiny-run.ts";
import { byteTokenizer, wordTokenizer } from "./tiny-tokenizer.ts";

const PREFIX = "abc, abd.";
const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
let prefix = "";
beforeAll(async () => {
  files = await writeTinyFiles(root);
  prefix = join(root, "prefix.txt");
  await writeFile(prefix, PREFIX);
});

const newFolder = () => mkdtemp(join(root, "run-"));
const asked = { dtype: "f32", quantize: "auto", chatTemplate: null } as const;

describe("a run with a prefix", () => {
  it("writes an adapter that brings its prefix along, exported too", async () => {
    const device = cpu();
    const options = tinyOptions(files, await newFolder(), "ladder", { prefix });
    const plain = await trainRun(device, tinyOptions(files, await newFolder(), "ladder"));
    const summary = await trainRun(device, options);
    expect(summary.frozen_eval_loss).not.toBe(plain.frozen_eval_loss);
    const exported = join(root, "exported");
    await exportAdapter(device, {
      model: files.model,
      adapter: options.outputDir,
      output: exported,
      type: "f32",
      overwrite: false,
    });
    for (const adapter of [options.outputDir, exported]) {
      using inference = await openInference(device, { ...asked, model: files.model, adapter });
      const { decoder, tokenizer, isQuantized } = inference;
      expect(isQuantized).toBe(true);
      expect(tokenizer.decode(decoder.prefixIds)).toBe([...PREFIX].join(" ")); // its tokenizer has no decoder
    }
    const other = join(root, "other.txt");
    await writeFile(other, "xyz");
    using inference = await openInference(device, {
      ...asked,
      model: files.model,
      adapter: exported,
      prefix: other,
    });
    expect(inference.tokenizer.decode(inference.decoder.prefixIds)).toBe("x y z");
  });

  it("says so on the command line, and so does an evaluation of its adapter", async () => {
    const output = join(root, "command");
    const trained = await sidenet(
      "train",
      ...tinyArguments(files),
      ...["--output", output, "--steps", "2", "--prefix", prefix],
    );
    expect(trained.err).toContain("20 training records, 4 held out, each after a prefix of 9 tokens");
    const scored = [
      "eval",
      "--model",
      files.model,
      "--device",
      "cpu",
      "--task",
      "perplexity",
      "--data",
      files.data,
    ];
    const after = await sidenet(...scored, "--adapter", output);
    expect(after.out).toContain("after a prefix of 9 tokens");
    const alone = await sidenet(...scored, "--prefix", prefix, "--json");
    expect(alone.json()).toMatchObject({ prefix_tokens: 9 });
    const without = await sidenet(...scored, "--json");
    expect(without.json()).toMatchObject({ prefix_tokens: 0 });
    expect(alone.json().before).not.toEqual(without.json().before);
  });

  it("can be resumed, to the bit, and not after another text", async () => {
    const device = cpu();
    const whole = tinyOptions(files, await newFolder(), "xladder", { prefix });
    await trainRun(device, whole);
    const parts = tinyOptions(files, await newFolder(), "xladder", { prefix });
    const stop = new AbortController();
    const onStep = ({ step }: { step: number }) => {
      if (step === 3) stop.abort();
    };
    await trainRun(device, parts, { onStep }, stop.signal);
    const other = join(root, "another.txt");
    await writeFile(other, `${PREFIX} `);
    await expect(trainRun(device, { ...parts, prefix: other, existing: "resume" })).rejects.toThrow(
      /L-RESUME.*another prefix.*9 tokens, now 10/,
    );
    await trainRun(device, { ...parts, existing: "resume" });
    expect(await traceOf(parts.outputDir)).toEqual(await traceOf(whole.outputDir));
  });

  it("is refused where the method changes the model's blocks, or texts share rows", async () => {
    for (const method of ["lora", "qlora", "full"] as const) {
      const device = cpu();
      const options = tinyOptions(files, await newFolder(), method, { prefix });
      await expect(trainRun(device, options)).rejects.toThrow("the method changes these");
      expect(device.memory.peak().peakBytes).toBe(0); // no weights were read
    }
    const missing = { model: join(root, "nowhere"), data: join(root, "nowhere.jsonl") };
    const packed = tinyOptions(missing, join(root, "never"), "ladder", { prefix, packLength: 16 });
    await expect(trainRun(cpu(), packed)).rejects.toThrow(/L-OPTION.*--pack-length/);
    const empty = join(root, "empty.txt");
    await writeFile(empty, "");
    const options = tinyOptions(files, await newFolder(), "ladder", { prefix: empty });
    await expect(trainRun(cpu(), options)).rejects.toThrow(/L-PROMPT.*empty\.txt is empty/);
    await writeFile(empty, Buffer.from([0x47, 0x72, 0xfc, 0xdf, 0x65])); // Latin-1
    await expect(trainRun(cpu(), options)).rejects.toThrow(/L-FILE.*empty\.txt is not UTF-8 text/);
  });

  it("leaves space for the records, or says how much there is", async () => {
    const long = join(root, "long.txt");
    await writeFile(long, "a".repeat(64));
    const train = async (text: string) =>
      trainRun(cpu(), tinyOptions(files, await newFolder(), "ladder", { prefix: text }));
    await expect(train(long)).rejects.toThrow(/L-CONTEXT.*prefix of 64 tokens.*context of 64/);
    await writeFile(long, "a".repeat(50)); // records have up to 15 tokens
    await expect(train(long)).rejects.toThrow(/L-TOO-LONG.*15 tokens are more than the 14/);
  });

  it("is not given to a model with LoRA in its blocks", async () => {
    const device = cpu();
    const options = tinyOptions(files, await newFolder(), "lora");
    await trainRun(device, options);
    await expect(
      openInference(device, { ...asked, model: files.model, adapter: options.outputDir, prefix }),
    ).rejects.toThrow(/L-METHOD.*the method changes these/);
    expect(device.memory.liveCount).toBe(0);
  });

  it("refuses ids in a file that are none", async () => {
    const folder = await newFolder();
    const weights = encodeSafetensors({}, { prefix_ids: "3 x" });
    await writeFile(join(folder, "adapter_model.safetensors"), weights);
    await expect(readBackboneSetup(folder)).rejects.toThrow(
      /L-ADAPTER-CONFIG.*prefix_ids.*"3 x", wanted token ids/,
    );
  });
});

describe("texts after a prefix", () => {
  const bos = { bos_token: "<|endoftext|>", add_bos_token: true };

  it("have no BOS of their own: the prefix has it", () => {
    const { tokenizer } = byteTokenizer(bos);
    expect(tokenizer.encode("hi")).toEqual([0, 107, 108]);
    expect(encodePrefix(tokenizer, "hi")).toEqual([0, 107, 108]);
    expect(encodePrefix(tokenizer, "<|endoftext|>hi")).toEqual([0, 107, 108]);
    const after = afterPrefix(tokenizer, encodePrefix(tokenizer, "hi"));
    expect(after.encode("hi")).toEqual([107, 108]);
    expect(after.encode("")).toEqual([]);
    expect(startId(after)).toBe(108); // not BOS, which would begin another text
    expect(startId(after.withChatTemplate("", "t"))).toBe(108);
    for (const text of ["hi", "<|endoftext|>hi"]) {
      const continuing = { addSpecialTokens: false, continues: true };
      expect(after.encode(text, { continues: true })).toEqual(tokenizer.encode(text, continuing));
    }
    expect(after.encode("<|endoftext|>hi", { addSpecialTokens: false })).toEqual([107, 108]);
    expect(after.withChatTemplate("{{ bos_token }}", "t").encode("<|endoftext|>hi")).toEqual([107, 108]);
  });

  it("are continuations, before which no blank is put", () => {
    const tokenizer = wordTokenizer();
    const prefix = encodePrefix(tokenizer, "ab");
    const joined = [...prefix, ...afterPrefix(tokenizer, prefix).encode("ab")];
    expect(tokenizer.decode(joined)).toBe("abab");
  });

  it("are encoded as in one text with it, though its last blank line alone would be one token", () => {
    const given = byteTokenizer().json as { model: { vocab: object } };
    const vocab = { ...given.model.vocab, ĊĊ: 259 };
    const pre_tokenizer = { type: "ByteLevel", add_prefix_space: false, use_regex: true };
    const json = { ...given, pre_tokenizer, model: { ...given.model, vocab, merges: ["Ċ Ċ"] } };
    const tokenizer = loadTokenizer(json, {});
    expect(tokenizer.encode("hi\n\n")).toEqual([107, 108, 259]);
    const prefix = encodePrefix(tokenizer, "hi\n\n");
    const joined = [...prefix, ...afterPrefix(tokenizer, prefix).encode("hi")];
    expect(joined).toEqual(tokenizer.encode("hi\n\nhi"));
  });

  it("are as ever where there is none", () => {
    const tokenizer = loadTokenizer(byteTokenizer().json, bos);
    expect(afterPrefix(tokenizer, [])).toBe(tokenizer);
  });
});
