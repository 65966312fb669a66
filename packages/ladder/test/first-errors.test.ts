// Errors that a new user meets in the first hour (docs/first-hour.md): each says what is wrong, where, and what to do.
import { mkdir, readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { sidenet } from "./capture.ts";

const root = temporaryFolder();
beforeAll(async () => {
  await writeFile(join(root, "qa.jsonl"), '{"question": "q", "answer": "a"}\n'.repeat(20));
  await writeFile(join(root, "pairs.jsonl"), '{"prompt": "q", "completion": " a"}\n'.repeat(20));
  await writeFile(join(root, "odd.jsonl"), '{"n": 1}\n');
  await writeFile(join(root, "tasks.jsonl"), '{"task": "q", "hint": "", "output": "a"}\n'.repeat(20));
  await writeFile(join(root, "half.jsonl"), '{"prompt": "q"}\n');
  await writeFile(join(root, "null.jsonl"), '{"prompt": "q", "completion": null}\n');
  await writeFile(join(root, "label.jsonl"), '{"question": "q", "choices": ["a", "b"], "label": 2}\n');
  await mkdir(join(root, "comparison", "ladder"), { recursive: true });
  await writeFile(join(root, "comparison", "ladder", "adapter_config.json"), "{}");
  const choices = { question: "q".repeat(3000), choices: ["a", "b"], label: 0 };
  await writeFile(join(root, "long.jsonl"), `${JSON.stringify(choices)}\n`);
});

const train = (data: string, ...more: string[]) => [
  ...["train", "--model", "tiny-books", "--device", "cpu", "--output", join(root, "out")],
  ...["--data", join(root, data), ...more],
];
const evaluate = (task: string, data: string, ...more: string[]) => [
  ...[
    "eval",
    "--model",
    "tiny-books",
    "--device",
    "cpu",
    "--task",
    task,
    "--data",
    join(root, data),
    ...more,
  ],
];
const device = (name: string) => ["train", "--model", "m", "--data", "d", "--output", "o", "--device", name];

it("a run that cannot begin leaves no folder behind", async () => {
  const output = join(root, "new", "folder");
  const { exitCode } = await sidenet(...train("none.jsonl"), "--output", output);
  expect(exitCode).toBe(1);
  expect(await readdir(root)).not.toContain("new");
});

describe("a new user is told", () => {
  it.each<[string, () => string[], number, RegExp]>([
    [
      "a data file that is not there",
      () => train("none.jsonl"),
      1,
      /data file .*none\.jsonl: there is no such file/,
    ],
    ["a folder for a data file", () => train("."), 1, /\[L-DATA\] data file .*it is a folder\. Name a file/],
    [
      "fields of other names",
      () => train("qa.jsonl"),
      1,
      /line 1: .*such as --prompt question --completion answer/,
    ],
    [
      "fields that hold no text",
      () => train("odd.jsonl"),
      1,
      /the fields n \(number\)\. Map other fields with --text/,
    ],
    [
      "fields of other names, the answer not next to the question",
      () => train("tasks.jsonl"),
      1,
      /such as --prompt task --completion output .*leaves out hint/,
    ],
    ["half a record", () => train("half.jsonl"), 1, /line 1: .*Its "completion" is missing\./],
    [
      "a field that holds no text",
      () => train("null.jsonl"),
      1,
      /line 1: its "completion" must be a text; found: null\.$/m,
    ],
    [
      "a label past the choices",
      () => train("label.jsonl"),
      1,
      /line 1: its "label" is past its 2 choices, which count from 0/,
    ],
    [
      "rows longer than the context",
      () => train("pairs.jsonl", "--pack-length", "9999"),
      2,
      /--pack-length 9999 tokens are more than the model's context of 256/,
    ],
    [
      "a size of another method",
      () => train("pairs.jsonl", "--rank", "8"),
      2,
      /--rank is for lora or qlora, and does nothing for ladder/,
    ],
    [
      "lengths that packing mixes",
      () => train("pairs.jsonl", "--pack-length", "64", "--bucket-by-length"),
      2,
      /--pack-length fills rows .* --bucket-by-length does nothing/,
    ],
    [
      "fields that no task has",
      () => train("pairs.jsonl", "--task", "gsm8k", "--text", "prompt"),
      2,
      /--text, .* those that --task gsm8k reads are mapped by --map/,
    ],
    [
      "a template for sentences that answer nothing",
      () => train("pairs.jsonl", "--task", "blimp", "--template", "chat"),
      2,
      /--template chat does nothing for blimp/,
    ],
    [
      "a template for texts",
      () => evaluate("perplexity", "pairs.jsonl", "--template", "chat"),
      2,
      /--template chat does nothing for perplexity/,
    ],
    [
      "a chat template for plain text",
      () => evaluate("arc", "pairs.jsonl", "--chat-template", "chat.jinja"),
      2,
      /--chat-template does nothing for arc in plain text\. Add --template chat/,
    ],
    [
      "a seed of no chance",
      () => ["generate", "--model", "none", "--prompt", "p", "--temperature", "0", "--seed", "1"],
      2,
      /--temperature 0 .* --seed do nothing/,
    ],
    [
      "a share of no chance",
      () => ["chat", "--model", "none", "--temperature", "0", "--top-p", "0.9"],
      2,
      /--temperature 0 .*--top-p/,
    ],
    ["patience for nothing", () => train("pairs.jsonl", "--patience", "2"), 2, /--eval-every\. Give both/],
    ["an empty name", () => train("pairs.jsonl", "--output", ""), 2, /--output is empty/],
    [
      "more side layers than the model has",
      () => train("pairs.jsonl", "--layers", "1000"),
      2,
      /\[L-OPTION\] --layers: 1000 is not a whole number from 1 to L = 6/,
    ],
    [
      "a side network without width",
      () => train("pairs.jsonl", "--reduction", "100000"),
      2,
      /\[L-OPTION\] --reduction: 100000 leaves.* Take at most 64/,
    ],
    [
      "LoRA on a layer that there is not",
      () => train("pairs.jsonl", "--method", "lora", "--targets", "lm_head"),
      2,
      /\[L-OPTION\] --targets: "lm_head" is not a linear layer/,
    ],
    [
      "full fine-tuning of 4 bits",
      () => train("pairs.jsonl", "--method", "full", "--quantize", "nf4"),
      2,
      /\[L-METHOD\].*--quantize none/,
    ],
    [
      "a plan for more layers than the model has",
      () => ["plan", "--model", "tiny-books", "--method", "ladder", "--layers", "1000"],
      2,
      /\[L-OPTION\] --layers: 1000 is not/,
    ],
    [
      "windows past the context",
      () => evaluate("perplexity", "long.jsonl", "--map", "text=question", "--context", "9999"),
      2,
      /\[L-OPTION\] windows of 9999 tokens/,
    ],
    [
      "a prompt that leaves no room, before it is written",
      () => ["generate", "--model", "tiny-books", "--device", "cpu", "--prompt", "p", "--max-tokens", "999"],
      2,
      /\[L-OPTION\] a prompt of 1 tokens and 999/,
    ],
    [
      "a question past the context, by its row",
      () => evaluate("choice", "long.jsonl"),
      1,
      /\[L-CONTEXT\] long\.jsonl, line 1: .*context of 256\. Leave the row out/,
    ],
    [
      "predictions where no folder is, before anything is scored",
      () => evaluate("choice", "long.jsonl", "--predictions", join(root, "none", "p.jsonl")),
      1,
      /none: there is no such file or folder/,
    ],
    [
      "predictions in place of the data",
      () => evaluate("choice", "long.jsonl", "--predictions", join(root, "long.jsonl")),
      1,
      /\[L-OUTPUT\] .*long\.jsonl is read from, and would be replaced/,
    ],
    [
      "a mapping that is not needed",
      () => train("pairs.jsonl", "--text", "body"),
      1,
      /the fields prompt \(string\), completion \(string\)\. Leave the field mapping out/,
    ],
    [
      "a GPU by another name",
      () => device("cuda:0"),
      2,
      /Allowed choices are auto, webgpu, .* webgpu is the GPU/,
    ],
    [
      "a device that is none",
      () => device("tpux"),
      2,
      /Allowed choices are auto, webgpu, wasm, cpu\.\n.*train --help/,
    ],
    [
      "a file for a folder",
      () => train("qa.jsonl", "--output", join(root, "qa.jsonl")),
      1,
      /there is a file of that name/,
    ],
    [
      "a resume of nothing",
      () => ["train", "--output", join(root, "nothing"), "--resume"],
      2,
      /holds no run to resume/,
    ],
    [
      "an adapter that is not there",
      () => ["generate", "--model", "tiny-books", "--prompt", "p", "--device", "cpu", "--adapter", root],
      1,
      /holds no adapter: .*--output of a run that has ended.*--resume/,
    ],
    [
      "a folder of adapters",
      () => [
        "generate",
        "--model",
        "tiny-books",
        "--prompt",
        "p",
        "--device",
        "cpu",
        "--adapter",
        join(root, "comparison"),
      ],
      1,
      /holds no adapter: .*Wanted one of the adapters in it: \S*comparison\/ladder\./,
    ],
    [
      "a text that is called otherwise",
      () => [
        "eval",
        "--model",
        "tiny-books",
        "--task",
        "perplexity",
        "--device",
        "cpu",
        "--data",
        join(root, "pairs.jsonl"),
      ],
      1,
      /no text, but has the fields prompt .*--map text=completion/,
    ],
    [
      "a model that is none",
      () => ["plan", "--model", join(root, "qa.jsonl")],
      1,
      /does not start with "GGUF".*or a folder/,
    ],
    [
      "an output below a file",
      () => ["convert", "--model", "tiny-books", "--output", join(root, "qa.jsonl", "x")],
      1,
      /\[L-FILE\]/,
    ],
  ])("%s", async (_, args, code, message) => {
    const { exitCode, err, out } = await sidenet(...args());
    expect(err).toMatch(message);
    expect(out).toBe("");
    expect(exitCode).toBe(code);
    expect(err).not.toMatch(/ENO|EISDIR|EEXIST|This is a bug/);
  });

  it("what would fit where nothing does", async () => {
    const run = await sidenet("plan", "--model", "Qwen2.5-7B", "--method", "ladder", "--memory", "4GB");
    expect(run.out).toMatch(/^ladder +- +- +> 6\.\d+ GB/m);
    expect(run.out).toContain("--quantize-ends");
    const json = (
      await sidenet("plan", "--model", "Qwen2.5-7B", "--method", "ladder", "--memory", "4GB", "--json")
    ).json();
    const [row] = json.longest as { least_bytes: number; error: { code: string; message: string } }[];
    expect(row.least_bytes).toBeGreaterThan(4e9);
    expect(row.error).toMatchObject({ code: "C-NO-FIT", message: expect.stringContaining("at 64 tokens") });
  });

  it("that a damaged run can be replaced", async () => {
    const output = join(root, "damaged");
    const settings = [
      "--output",
      output,
      "--steps",
      "1",
      "--sample-tokens",
      "0",
      "--held-out",
      "2",
      "--max-length",
      "16",
    ];
    expect((await sidenet(...train("pairs.jsonl", ...settings))).exitCode).toBe(0);
    await writeFile(join(output, "run.json"), "{");
    const resumed = await sidenet("train", "--output", output, "--resume");
    expect(resumed.err).toMatch(/\[L-RUN\] .*run\.json is not JSON.*Start anew with --overwrite/);
    expect((await sidenet(...train("pairs.jsonl", ...settings, "--overwrite"))).exitCode).toBe(0);
  });
});
