// `sidenet compare` trains each method as `sidenet train` does it: the same options, losses, bytes and files.
import { mkdtemp, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { TestRandom } from "@sidenet/tensor";
import { Command } from "commander";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { defineCommands } from "../src/cli/program.ts";
import { Session } from "../src/cli/session.ts";
import { sidenet } from "./capture.ts";
import { traceOf, writeTinyFiles } from "./tiny-run.ts";

const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
let template = "";
beforeAll(async () => {
  files = await writeTinyFiles(root);
  template = join(root, "template.jinja");
  await writeFile(template, "{% for m in messages %}{{ m.role[0] }} {{ m.content }}.{% endfor %}");
  const pairs = Array.from({ length: 24 }, (_, i) => ({ ask: "ab".repeat(1 + (i % 3)), say: " dog" }));
  await writeFile(join(root, "pairs.jsonl"), pairs.map((pair) => `${JSON.stringify(pair)}\n`).join(""));
});

const newFolder = () => mkdtemp(join(root, "run-"));

/** Options of any kind that train and compare have, by chance. */
function drawOptions(pick: TestRandom): string[] {
  const some = (...options: string[]) => (pick.int(0, 1) === 1 ? options : []);
  const oneOf = <T>(...values: T[]): T => values[pick.int(0, values.length - 1)];
  const asChat = pick.int(0, 1) === 1;
  return [
    ...(asChat
      ? ["--data", join(root, "pairs.jsonl"), "--prompt", "ask", "--completion", "say", "--template", "chat"]
      : ["--data", files.data, `${files.more}:2`]),
    ...(asChat ? ["--chat-template", template] : []),
    ...oneOf(["--held-out", "4"], ["--held-out", "0.3"], asChat ? [] : ["--eval-data", files.more]),
    ...["--steps", `${pick.int(3, 6)}`, "--batch-size", `${pick.int(2, 4)}`],
    ...oneOf([], ["--pack-length", "48"], ["--bucket-by-length"], ["--max-length", "16"]),
    ...some("--gradient-accumulation", "2"),
    ...some("--micro-batch", "1"),
    ...some("--learning-rate", "0.003"),
    ...some("--warmup-steps", `${pick.int(0, 3)}`),
    ...some("--schedule", oneOf("constant", "linear")),
    ...some("--weight-decay", "0.1"),
    ...some("--max-grad-norm", "0.01"),
    ...some("--seed", `${pick.int(1, 99)}`),
    ...some("--eval-every", "2", "--patience", "2"),
    ...some("--save-every", "2", "--keep", "1"),
    ...some("--sample-tokens", `${pick.int(0, 3)}`),
    ...some("--optimizer-state", oneOf("f32", "8bit")),
    ...some("--saved", "f16"),
    ...some("--quantize-ends"),
    ...some("--on-nonfinite", "skip"),
  ];
}

/** Methods with options of their own, and how `train` is given their suffixes. */
const METHODS: readonly (readonly [variant: string, method: string, ...own: string[]])[] = [
  ["ladder", "ladder", "--reduction", "2"],
  ["ladder+int8-rungs", "ladder", "--reduction", "2", "--init", "pruned"],
  ["xladder", "xladder", "--reduction", "2", "--fusion", "gate"],
  ["lora", "lora", "--rank", "2", "--dropout", "0.2"],
  ["lora+checkpointing", "lora", "--targets", "q_proj", "v_proj"],
  ["qlora+f32", "qlora", "--lora-layers", "1"],
];
const SUFFIXES: Readonly<Record<string, readonly string[]>> = {
  "int8-rungs": ["--rungs", "int8"],
  checkpointing: ["--gradient-checkpointing"],
  f32: ["--saved", "f32", "--optimizer-state", "f32"], // of a side network the rungs as well
};

/** What does not say when, where and how fast. */
async function runOf(folder: string) {
  const read = async (name: string) => JSON.parse(await readFile(join(folder, name), "utf8"));
  const { settings, defaults, model, device } = await read("run.json");
  const { adapter: _, seconds, tokens_per_second, method, ...summary } = await read("summary.json");
  const checkpoints = await readdir(join(folder, "checkpoints"));
  const names = (await readdir(folder)).filter((name) => name !== "report.html"); // compare has one page for all
  return {
    ...(await traceOf(folder)),
    settings: { ...settings, output: null },
    rest: { defaults, model, device, summary, checkpoints, names },
  };
}

describe("a method that compare trains is what train makes of the same options", () => {
  it.each(Array.from({ length: 12 }, (_, i) => i))("case %i", async (i) => {
    const [variant, method, ...own] = METHODS[i % METHODS.length];
    const [, suffix = ""] = variant.split("+");
    const options = [...drawOptions(new TestRandom(i)), ...own, "--device", "cpu", "--model", files.model];
    const output = await newFolder();
    const compared = ["--methods", variant, "--output", join(output, "all")];
    const trained = ["--method", method, "--output", join(output, "one"), ...(SUFFIXES[suffix] ?? [])];
    const all = await sidenet("compare", ...options, ...compared, "--json");
    const one = await sidenet("train", ...options, ...trained, "--json");
    expect([all.exitCode, one.exitCode], `${options.join(" ")}\n${all.err}\n${one.err}`).toEqual([0, 0]);
    const [made, wanted] = [await runOf(join(output, "all", variant)), await runOf(join(output, "one"))];
    expect(made, options.join(" ")).toEqual(wanted);
    const [result] = all.json().results as { loss: number[]; method: string }[];
    expect(result).toMatchObject({ loss: one.json().loss, method: variant });
  });

  it("and can be continued by train, from the folder alone", async () => {
    const output = await newFolder();
    const options = ["--model", files.model, "--data", files.data, "--device", "cpu", "--held-out", "4"];
    const methods = ["--methods", "ladder", "lora+checkpointing", "--steps", "2", "--output", output];
    const sizes = ["--reduction", "2", "--fusion", "gate", "--rank", "2"]; // of one of the methods each
    expect(await sidenet("compare", ...options, ...methods, ...sizes)).toMatchObject({ exitCode: 0 });
    for (const method of ["ladder", "lora+checkpointing"]) {
      const args = ["--output", join(output, method), "--resume", "--steps", "4", "--json"];
      const more = await sidenet("train", ...args);
      expect(more.exitCode, more.err).toBe(0);
      expect(more.json()).toMatchObject({ resumed_from: 2, steps: 4 });
      expect(more.err.match(/resumed with a change: .*/g)).toEqual([
        "resumed with a change: steps was 2, now it is 4",
      ]);
    }
  });
});

it("compare takes every option of train but those about one run, and every option of plan but those about one plan", () => {
  const program = new Command("sidenet");
  defineCommands(program, new Session({ out: () => {}, err: () => {}, interactive: false }, false));
  const optionsOf = (name: string) => program.commands.find((command) => command.name() === name)!.options;
  const compare = optionsOf("compare");
  const leftOut = (name: string) =>
    optionsOf(name)
      .filter(({ long, hidden }) => !hidden && !compare.some((option) => option.long === long))
      .map(({ long }) => long)
      .sort();
  expect(leftOut("train")).toEqual(["--memory-timeline", "--method", "--resume"]);
  expect(leftOut("plan")).toEqual(["--memory", "--memory-timeline", "--method"]);
  // The same definitions, but for what several methods, or a plan, make of them.
  const own = ["--model", "--data", "--output", "--overwrite", "--device"];
  for (const option of optionsOf("train")) {
    const same = compare.find(({ flags }) => flags === option.flags);
    if (!same || own.includes(option.long!)) continue;
    const facts = ({ description, defaultValue, argChoices, variadic, negate }: typeof option) => ({
      ...{ description, defaultValue, argChoices, variadic, negate },
    });
    expect(facts(same), option.flags).toEqual(facts(option));
  }
});
