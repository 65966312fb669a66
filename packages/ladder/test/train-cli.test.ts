// `sidenet train` as a user types it: config files and flags, what it writes, and what it says when something is wrong.
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Command } from "commander";
import { beforeAll, describe, expect, it } from "vitest";
import { parse } from "yaml";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { weightedFile } from "../src/cli/data-options.ts";
import { configText, currentSettings, parseConfig, settingName, settingsOf } from "../src/cli/settings.ts";
import { Report } from "../src/cli/terminal.ts";
import { addTrainSettings } from "../src/cli/training-options.ts";
import { sidenet } from "./capture.ts";
import { tinyArguments, writeTinyFiles } from "./tiny-run.ts";

const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
let base: string[] = [];
beforeAll(async () => {
  files = await writeTinyFiles(root);
  base = tinyArguments(files);
});

interface TimelineLine {
  readonly op: string;
  readonly live_bytes: number;
  readonly highest_bytes: number;
  readonly live: Readonly<Record<string, number>>;
}

async function writeConfig(text: string, name = "run.yaml"): Promise<string> {
  const path = join(temporaryFolder(), name);
  await writeFile(path, text);
  return path;
}
const newCommand = () => addTrainSettings(new Command("train").exitOverride());

describe("settings", () => {
  it("are the flags: a file takes each flag's name, and gives the value that the flag gives", () => {
    const typed = newCommand().parse(
      [
        "--steps",
        "7",
        "--learning-rate",
        "1e-3",
        "--no-rung-norm",
        "--quantize",
        "nf4",
        "--targets",
        "q_proj",
        "v_proj",
      ],
      { from: "user" },
    );
    const text =
      "steps: 7\nlearning-rate: 1e-3\nrung-norm: false\nquantize: nf4\ntargets: [q_proj, v_proj]\n";
    const written = parseConfig(newCommand(), text, "run.yaml");
    for (const [name, value] of Object.entries(written)) expect(value).toEqual(currentSettings(typed)[name]);
    expect(Object.keys(written).length).toBe(5);
  });

  it("of the file that init writes are every flag there is, and its values come back", async () => {
    const path = join(temporaryFolder(), "run.yaml");
    const made = await sidenet(
      "init",
      path,
      "--model",
      "m",
      "--data",
      "a.jsonl:2",
      "b.jsonl",
      "--schedule",
      "linear",
    );
    expect(made.exitCode).toBe(0);
    const text = await readFile(path, "utf8");
    expect(parse(text)).toEqual({ model: "m", data: ["a.jsonl:2", "b.jsonl"], schedule: "linear" });
    // Uncommented, each line is a setting that the schema takes, with the flag's default as its value.
    const all = text.replace(/^#([a-z0-9-]+:)( .*)?$/gm, (_, name, value) => (value ? name + value : ""));
    const values = parseConfig(newCommand(), all, "run.yaml");
    const defaults = newCommand();
    for (const option of settingsOf(defaults)) {
      expect(text, settingName(option)).toMatch(new RegExp(`^#?${settingName(option)}:`, "m"));
      const usual = defaults.getOptionValue(option.attributeName());
      if (usual !== undefined && option.attributeName() !== "schedule")
        expect(values[settingName(option)]).toEqual(usual);
    }
    expect((await sidenet("init", path)).exitCode).toBe(2);
    const useless = await sidenet("init", `${path}.new`, "--method", "lora", "--rungs", "int8");
    expect(useless).toMatchObject({ exitCode: 2, out: "" }); // as train says it
    expect(useless.err).toContain("--rungs is for ladder or xladder, and does nothing for lora");
    expect(configText(newCommand(), "head")).toMatch(/^# head\n/);
  });

  it.each([
    ["a number that is no exact integer", "steps: 1e99", /line 1: steps: .*whole number above 0/],
    ["no number", 'warmup-steps: ""', /line 1: warmup-steps: .*whole number, 0 or more/],
    ["a word for a number", "steps: many", /line 1: steps: .*whole number above 0.*"many"/],
    ["a number out of range", "a: 1\nweight-decay: -3", /weight-decay: .*0 to 100.*-3/],
    ["a choice that is none", "schedule: exponential", /schedule: .*"constant"\|"linear"\|"cosine"/],
    ["a flag with text", "rslora: please", /rslora: .*expected boolean/],
    ["a list for one value", "steps: [1, 2]", /steps: Wanted one value/],
    [
      "another spelling",
      "\nbatch_size: 4",
      /line 2: there is no setting "batch_size". Did you mean batch-size\?/,
    ],
    ["a typo", "\nstps: 4", /line 2: there is no setting "stps". Did you mean steps\?/],
    ["an unknown name", "lerning: 4", /there is no setting "lerning". Settings are: model, data, output/],
    ["what is no YAML", "steps: [1", /neither YAML nor JSON/],
    ["text that is no map", "just text", /expected record|expected object/i],
  ])("are told where they are wrong: %s", async (_, text, message) => {
    const path = await writeConfig(text);
    const { exitCode, err, out } = await sidenet("train", "--config", path);
    expect({ exitCode, out }).toEqual({ exitCode: 2, out: "" });
    expect(err).toContain("[C-CONFIG]");
    expect(err).toContain("run.yaml");
    expect(err).toMatch(message);
  });

  it("come from flags first, then --set, then the file, in YAML or JSON", async () => {
    const output = join(temporaryFolder(), "out");
    const settings = {
      steps: 5,
      "batch-size": 1,
      seed: 9,
      model: files.model,
      data: files.data,
      device: "cpu",
    };
    const path = await writeConfig(JSON.stringify({ ...settings, "held-out": 4, reduction: 2 }), "run.json");
    const layers = ["--set", "steps=3", "batch-size=3", "--batch-size", "2"];
    const run = await sidenet("train", "--config", path, "--output", output, "--json", ...layers);
    expect(run.err).not.toContain("bug");
    expect(run.json()).toMatchObject({ steps: 3 });
    const { settings: kept } = JSON.parse(await readFile(join(output, "run.json"), "utf8"));
    expect(kept).toMatchObject({ steps: 3, "batch-size": 2, seed: 9, schedule: "cosine" });
  });

  it("that are needed are named, all of them", async () => {
    const { exitCode, err } = await sidenet("train", "--data", "x");
    expect(exitCode).toBe(2);
    expect(err).toContain("--model, --output must be given, as a flag or in --config");
    expect((await sidenet("train", "--config", join(root, "none.yaml"))).err).toContain("[L-FILE-MISSING]");
    expect((await sidenet("train", "--set", "steps")).err).toContain("--set wants name=value");
  });

  it.each([
    ["--held-out 4 --eval-data x", "--eval-data takes the place of held-out records"],
    ["--patience 2", "--patience counts the evaluations of --eval-every"],
    ["--calibration 3", "--calibration is what --importance fisher is measured on"],
  ])("that would do nothing are refused: %s", async (given, message) => {
    const output = join(root, "none");
    const needed = ["--model", "x", "--data", "x", "--output", output];
    const { exitCode, err } = await sidenet("train", ...needed, ...given.split(" "));
    expect({ exitCode, err }).toEqual({ exitCode: 2, err: expect.stringContaining(`[C-USAGE] ${message}`) });
  });
});

describe("a run", () => {
  it("writes its adapter, checkpoints, metrics and page, and can be resumed by its folder alone", async () => {
    const output = join(temporaryFolder(), "out");
    const first = await sidenet("train", ...base, "--output", output, "--steps", "4", "--save-every", "2");
    expect(first.err).toMatch(/^step 1\/4 .*\nstep 4\/4 /m);
    expect(first.exitCode).toBe(0);
    expect((await readdir(output)).sort()).toEqual([
      "adapter_config.json",
      "adapter_model.safetensors",
      "checkpoints",
      "metrics.jsonl",
      "profile.json",
      "report.html",
      "run.json",
      "summary.json",
    ]);
    const again = await sidenet("train", "--output", output, "--resume", "--steps", "6", "--json");
    expect(again.json()).toMatchObject({ resumed_from: 4, steps: 6 });
    expect(again.err).toContain("resumed with a change: steps was 4, now it is 6");
    // What is in force is what the report shows and what the next resume goes on from.
    const { settings, started } = JSON.parse(await readFile(join(output, "run.json"), "utf8"));
    expect(settings.steps).toBe(6);
    expect(new Date(started).getTime()).toBeLessThan(Date.now());
    const third = await sidenet("train", "--output", output, "--resume", "--json");
    expect(third.err).toContain(
      "resumed after 6 steps: all 6 are done. To train longer, give for example --steps 12\n",
    );
    expect(again.err).toContain("resumed after 4 steps\n");
    const { peak_bytes } = again.json();
    expect(third.json()).toMatchObject({ resumed_from: 6, steps: 6, peak_bytes }); // no step, and the peak of those before
    const smaller = await sidenet("train", "--output", output, "--resume", "--steps", "8", "--layers", "1");
    expect(smaller.err).toContain("layers was its default, now it is 1: that would be another run");
    const other = await sidenet("train", "--output", output, "--resume", "--batch-size", "1");
    expect(other.exitCode).toBe(2);
    expect(other.err).toContain("batch-size was 4, now it is 1: that would be another run");
    const mapped = await sidenet("train", "--output", output, "--resume", "--text", "body");
    expect(mapped.err).toContain('text was its default, now it is "body": that would be another run');
    const taken = await sidenet("train", ...base, "--output", output);
    expect(taken.exitCode).toBe(1);
    expect(taken.err).toContain("[L-RUN-EXISTS]");
    expect(
      (await sidenet("train", ...base, "--output", output, "--steps", "1", "--overwrite")).exitCode,
    ).toBe(0);
  });

  it("keeps the moments that it began with, whatever auto makes of other weights", async () => {
    const output = join(temporaryFolder(), "out");
    const resume = (...flags: string[]) => sidenet("train", "--output", output, "--resume", ...flags);
    await sidenet("train", ...base, "--output", output, "--steps", "2");
    expect(await resume("--quantize", "none", "--steps", "3")).toMatchObject({ exitCode: 0 });
    expect(await resume("--set", "optimizer-state=auto", "--steps", "4")).toMatchObject({ exitCode: 0 });
    expect(await resume("--optimizer-state", "8bit", "--steps", "5")).toMatchObject({ exitCode: 0 });
    expect(await resume("--optimizer-state", "f32")).toMatchObject({
      exitCode: 2,
      err: expect.stringMatching(/optimizer-state was "8bit", now it is "f32".*Leave --optimizer-state out/),
    });
  });

  it("trains a model whose padding token is none of its vocabulary: padding is hidden, so any token will do", async () => {
    const own = await writeTinyFiles(temporaryFolder());
    const path = join(own.model, "config.json");
    const config = JSON.parse(await readFile(path, "utf8")) as { vocab_size: number };
    await writeFile(path, JSON.stringify({ ...config, pad_token_id: config.vocab_size }));
    const output = temporaryFolder();
    expect(await sidenet("train", ...tinyArguments(own), "--output", output, "--steps", "1")).toMatchObject({
      exitCode: 0,
    });
  });

  it("shows a sample of what room a long record leaves", async () => {
    const long = join(root, "long.jsonl");
    const record = { prompt: "a".repeat(60), completion: "b" }; // of a context of 64 tokens
    await writeFile(long, `${JSON.stringify(record)}\n`.repeat(6));
    const args = [
      "--data",
      long,
      "--output",
      join(temporaryFolder(), "out"),
      "--steps",
      "1",
      "--device",
      "cpu",
    ];
    const run = await sidenet(
      "train",
      "--model",
      files.model,
      ...args,
      "--held-out",
      "2",
      "--reduction",
      "2",
    );
    expect(run.err).toContain("a▸"); // its answer, of one token, is not given away
    expect(run.exitCode).toBe(0);
  });

  it("shows what it answers to a prompt, and gives nothing of the answer away; of a text it shows how it goes on", async () => {
    const sampleOf = async (record: object) => {
      const data = join(temporaryFolder(), "few.jsonl");
      await writeFile(data, `${JSON.stringify(record)}\n`.repeat(6));
      const args = ["--data", data, "--output", join(temporaryFolder(), "out"), "--device", "cpu"];
      const few = ["--steps", "1", "--held-out", "2", "--reduction", "2", "--sample-tokens", "3", "--json"];
      const run = await sidenet("train", "--model", files.model, ...args, ...few);
      const { samples } = run.json() as { samples: { before: { prompt: string } } };
      return samples.before.prompt.replaceAll(" ", ""); // the tokenizer sets its letters apart
    };
    expect(await sampleOf({ prompt: "who", completion: "thelionmetthemouse" })).toBe("who");
    const text = "onceuponatimetherewas";
    expect(text.startsWith(await sampleOf({ text }))).toBe(true);
    expect((await sampleOf({ text })).length).toBeGreaterThan(4);
  });

  it("writes what is live after each op of its second step, the same that the report plots", async () => {
    const output = join(temporaryFolder(), "out");
    const file = join(temporaryFolder(), "timeline.jsonl");
    const args = ["--output", output, "--steps", "3", "--sample-tokens", "0", "--memory-timeline", file];
    const run = await sidenet("train", ...base, ...args, "--json");
    const lines = (await readFile(file, "utf8")).trimEnd().split("\n");
    const samples = lines.map((line) => JSON.parse(line) as TimelineLine);
    const { peak_bytes } = run.json() as { peak_bytes: number };
    const highest = samples.map(({ highest_bytes }) => highest_bytes);
    expect(Math.max(...highest)).toBeLessThanOrEqual(peak_bytes);
    expect(Math.max(...highest)).toBeGreaterThan(0.5 * peak_bytes);
    const sum = (bytes: object) => Object.values(bytes).reduce((a: number, b: number) => a + b, 0);
    for (const { live, live_bytes } of samples) expect(sum(live)).toBe(live_bytes);
    const ops = samples.map(({ op }) => op);
    expect(ops.filter((op) => op === "lmHeadLoss")).toHaveLength(1); // one step, no more
    expect(ops.some((op) => op.startsWith("adamw"))).toBe(true);
    const { memory } = JSON.parse(await readFile(join(output, "profile.json"), "utf8")) as {
      memory: object[];
    };
    expect(memory.map(sum)).toEqual(highest);
    const settings = await readFile(join(output, "run.json"), "utf8");
    expect(settings).not.toContain("timeline"); // no setting: a run that goes on does not write it again
  });

  it("says so where there was no second step for a timeline, and refuses a file that cannot be before it starts", async () => {
    const output = join(temporaryFolder(), "out");
    const file = join(root, "never.jsonl");
    const args = [...base, "--output", output, "--steps", "1", "--memory-timeline"];
    const nowhere = await sidenet("train", ...args, join(root, "no", "folder.jsonl"));
    expect(nowhere.exitCode).toBe(1);
    expect(nowhere.err).toContain("[L-FILE-MISSING]");
    expect((await sidenet("train", ...args, file)).err).toContain(`no ${file}: it records the second step`);
    await expect(readFile(file)).rejects.toThrow("ENOENT");
  });

  it("is quiet where it shall be: nothing but errors, and the object of --json", async () => {
    const output = join(temporaryFolder(), "out");
    const run = await sidenet("train", ...base, "--output", output, "--steps", "2", "--quiet");
    expect(run).toMatchObject({ exitCode: 0, out: "", err: "" });
    const failed = await sidenet("train", ...base, "--output", output, "--quiet", "--json");
    expect(failed.err).toContain("[L-RUN-EXISTS]");
    expect(failed.json()).toMatchObject({ error: { code: "L-RUN-EXISTS" } });
  });

  it("takes files with weights", () => {
    expect(weightedFile("a.jsonl")).toEqual({ path: "a.jsonl", weight: 1 });
    expect(weightedFile("dir/a.jsonl:2.5")).toEqual({ path: "dir/a.jsonl", weight: 2.5 });
    expect(weightedFile("C:\\data\\a.jsonl")).toEqual({ path: "C:\\data\\a.jsonl", weight: 1 });
    for (const bad of ["a.jsonl:", "a.jsonl:0", "a.jsonl:-1", "a.jsonl:much"]) {
      expect(() => weightedFile(bad), bad).toThrow(/--data .*no weight/);
    }
  });
});

it("a progress bar is drawn for a person, lines are written above it, and it leaves nothing behind", async () => {
  let err = "";
  const terminal = { out: () => {}, err: (text: string) => { err += text; }, interactive: true, columns: 100 }; // biome-ignore format: short
  const report = new Report(terminal, false);
  report.bar(1, 20, "loss 2.5");
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(err).toContain("█░░░░░░░░░░░░░░░░░░░ 1/20  loss 2.5");
  report.note("a remark");
  await new Promise((resolve) => setTimeout(resolve, 300));
  expect(err).toContain("a remark\n");
  report.endBar();
  report.print("done");
  err = "";
  report.note("after");
  expect(err).toBe("after\n");
});
