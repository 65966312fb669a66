// `--config` and `--set`, which every command with many options has: the same names and values as its flags.
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { describe, expect, it } from "vitest";
import { stringify } from "yaml";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { defineCommands } from "../src/cli/program.ts";
import { Session } from "../src/cli/session.ts";
import { applySettings, currentSettings, parseConfig, settingName, settingsOf } from "../src/cli/settings.ts";
import { sidenet } from "./capture.ts";

const root = temporaryFolder();

let files = 0;
async function write(text: string): Promise<string> {
  const path = join(root, `${files++}.yaml`);
  await writeFile(path, text);
  return path;
}

/** A command as the program defines it, which parses and does not run. */
function newCommand(name: string): Command {
  const program = new Command("sidenet").exitOverride();
  defineCommands(program, new Session({ out: () => {}, err: () => {}, interactive: false }, false));
  return program.commands.find((command) => command.name() === name)!;
}

/** Flags with values of every kind that the command has: choices, numbers, sizes, lists, negations, repetition. */
const FLAGS: Readonly<Record<string, readonly string[]>> = {
  train: ["--data", "a.jsonl:2", "b.jsonl", "--steps", "7", "--no-rung-norm", "--targets", "q_proj", "v_proj"],
  compare: ["--methods", "ladder", "qlora+checkpointing", "--context", "512", "2048", "--learning-rate", "1e-3"],
  plan: ["--method", "ladder", "lora", "--memory", "12GB", "--no-gradient-checkpointing", "--rungs", "int8"],
  eval: ["--task", "boolq", "--data", "a", "b", "--limit", "5", "--join", "--map", "question=problem"],
  generate: ["--prompt", "a", "--prompt", "b", "--stop", ".", "--top-p", "0.9", "--seed", "7", "--max-tokens", "4"],
  chat: ["--system", "be brief", "--temperature", "0.5", "--max-tokens", "12"],
  convert: ["--output", "o.gguf", "--dtype", "q8_0", "--max-shard", "2GB"],
  export: ["--adapter", "out/run", "--output", "o", "--as", "adapter", "--dtype", "f16"],
  bench: ["--only", "softmax", "add", "--tokens", "64", "--no-check", "--buffer", "x=8", "--buffer", "y=8:i32", "--param", "a=2"],
}; // biome-ignore format: a line a command

/** The same as a file says it: texts of flags, numbers as numbers. */
function asFile(command: Command, flags: readonly string[]): Record<string, unknown> {
  const found: Record<string, unknown[]> = {};
  let name = "";
  for (const word of flags) {
    if (word.startsWith("--")) {
      name = word.replace(/^--(no-)?/, "");
      found[name] ??= [];
    } else {
      found[name].push(Number.isNaN(Number(word)) ? word : Number(word));
    }
  }
  return Object.fromEntries(
    Object.entries(found).map(([key, values]) => {
      const option = settingsOf(command).find((one) => settingName(one) === key && !one.negate);
      if (values.length === 0) return [key, !flags.includes(`--no-${key}`)];
      return [key, option?.variadic || values.length > 1 ? values : values[0]];
    }),
  );
}

describe("a config file", () => {
  it("serves every command that has five settings or more", () => {
    const program = new Command("sidenet");
    defineCommands(program, new Session({ out: () => {}, err: () => {}, interactive: false }, false));
    const many = program.commands.filter((command) => settingsOf(command).length >= 5);
    const configured = many.filter((command) => command.options.some(({ long }) => long === "--config"));
    expect(configured.map((command) => command.name()).sort()).toEqual(Object.keys(FLAGS).sort());
    // init writes such a file and reads none
    expect(many.filter((command) => !configured.includes(command)).map((command) => command.name())).toEqual([
      "init",
    ]);
  });

  it.each(Object.keys(FLAGS))("gives %s the values that its flags give", (name) => {
    const typed = newCommand(name);
    typed.parseOptions([...FLAGS[name]]);
    const filed = newCommand(name);
    applySettings(filed, parseConfig(filed, stringify(asFile(filed, FLAGS[name])), "a.yaml"));
    expect(currentSettings(filed)).toEqual(currentSettings(typed));
    expect(currentSettings(filed)).not.toEqual(currentSettings(newCommand(name)));
  });

  it.each(Object.keys(FLAGS))("names each setting of %s that is wrong, and what is allowed", async (name) => {
    const command = newCommand(name);
    const choice = settingsOf(command).find((option) => option.argChoices)!;
    const path = await write(`# wrong\n${settingName(choice)}: no-such-choice\nlerning: 3\n`);
    const { exitCode, err, out } = await sidenet(name, "--config", path);
    expect({ exitCode, out }).toEqual({ exitCode: 2, out: "" });
    expect(err).toContain(`[C-CONFIG] ${path}`);
    expect(err).toContain(`line 2: ${settingName(choice)}: `);
    for (const allowed of choice.argChoices!) expect(err).toContain(`"${allowed}"`);
    expect(err).toMatch(/line 3: there is no setting "lerning". Settings are: .*model/);
  });

  it("may give what a command requires, and what is missing is named with all that is", async () => {
    const plan = await sidenet(
      "plan",
      "--config",
      await write("model: SmolLM2-135M\ncontext: [64, 128]"),
      "--json",
    );
    expect(plan.exitCode, plan.err).toBe(0);
    expect((plan.json().plans as { context: number }[]).map(({ context }) => context)).toContain(128);
    const none = await sidenet("convert", "--set", "dtype=f32");
    expect(none.exitCode).toBe(2);
    expect(none.err).toContain("--model, --output must be given, as a flag or in --config");
    expect((await sidenet("eval", "--task", "choice")).err).toContain("--data, --model must be given");
  });

  it("counts less than --set, and that less than a flag", async () => {
    const path = await write("model: SmolLM2-135M\nbatch-size: 1\ncontext: 64\nmethod: lora\n");
    const run = await sidenet(
      "plan",
      "--config",
      path,
      "--set",
      "batch-size=2",
      "context=32",
      "--context",
      "16",
      "--json",
    );
    expect(run.json()).toMatchObject({ method: "lora", batch_size: 2, context: 16 });
  });

  it("runs a command that computes: generate continues each of its prompts", async () => {
    const text = "model: tiny-books\nprompt: [Once, The]\nmax-tokens: 3\ndevice: wasm\n";
    const run = await sidenet("generate", "--config", await write(text), "--json");
    expect(run.exitCode, run.err).toBe(0);
    expect((run.json().results as { prompt: string }[]).map(({ prompt }) => prompt)).toEqual(["Once", "The"]);
  });

  it("is told apart from options that do not go together, as with flags", async () => {
    const path = await write("threshold: 0.2\n");
    const { exitCode, err } = await sidenet("bench", "--config", path);
    expect(exitCode).toBe(2);
    expect(err).toContain("--threshold belongs to --compare");
  });
});

it("the guide's list of what --config serves is the program's", async () => {
  const text = await readFile(new URL("../../../docs/training.md", import.meta.url), "utf8");
  for (const name of Object.keys(FLAGS))
    expect(text, name).toMatch(new RegExp(`--config.*\\b${name}\\b`, "s"));
});
