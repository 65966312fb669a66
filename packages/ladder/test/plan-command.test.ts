import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { sidenet } from "./capture.ts";
import { writeTinyFiles } from "./tiny-run.ts";

const folder = temporaryFolder();

interface Row {
  readonly method: string;
  readonly context: number;
  readonly past_model_context: boolean;
  readonly peak_bytes: number;
  readonly peak_bytes_by_category: Record<string, number>;
  readonly flops: number;
  readonly tokens: number;
  readonly trainable_parameters: number;
  readonly longest_context?: number;
  readonly memory_context?: number;
}

describe("sidenet plan", () => {
  it("prints the keys that train and compare have, and of one plan at the top as well", async () => {
    const args = ["--model", "SmolLM2-135M", "--method", "ladder", "--context", "256", "--batch", "2"];
    const json = (await sidenet("plan", ...args, "--json")).json() as unknown as Row & { plans: Row[] };
    expect(json).toMatchObject({ method: "ladder", tokens: 512, context: 256 });
    const last = (await sidenet("plan", ...args, "--batch-size", "3", "--json")).json();
    expect(last).toMatchObject({ batch_size: 3, tokens: 768 }); // two names of one option, of which the last counts
    expect(json).toMatchObject({ device: "meta: any discrete adapter with f16" });
    expect(json).not.toHaveProperty("adapter"); // elsewhere that is what was trained
    expect(json.plans).toHaveLength(1);
    expect(json.plans[0].peak_bytes).toBe(json.peak_bytes);
    const sum = Object.values(json.peak_bytes_by_category).reduce((a, b) => a + b, 0);
    expect(sum).toBe(json.peak_bytes);
    expect(json.flops).toBeGreaterThan(0);
    expect(json.trainable_parameters).toBeGreaterThan(0);
  });

  it("finds the longest context in a budget, tells it apart from the model's own, and names the best method", async () => {
    const args = ["--model", "SmolLM2-135M", "--method", "ladder,qlora", "--memory", "800MB", "--json"];
    const json = (await sidenet("plan", ...args)).json();
    const [side, qlora] = json.longest as Row[];
    expect(side.longest_context).toBe(8192);
    expect(side.memory_context).toBeGreaterThanOrEqual(8192);
    expect(qlora.longest_context).toBeLessThan(8192);
    expect(json.best).toEqual({ method: "ladder", context: 8192 });
    for (const row of [side, qlora]) expect(row.peak_bytes).toBeLessThanOrEqual(800e6);
  });

  it("counts a prefix: its keys and values, and the positions that it takes", async () => {
    const args = ["--model", "SmolLM2-135M", "--context", "8000", "--json"];
    const rowsOf = async (...more: string[]) => {
      const run = await sidenet("plan", ...args, ...more);
      return { ...run, plans: run.json().plans as Row[] };
    };
    const [without] = (await rowsOf("--method", "ladder")).plans;
    const prefixed = await rowsOf("--method", "ladder", "--prefix-tokens", "300");
    const [row] = prefixed.plans;
    const keysAndValues = 2 * 4 * 30 * 3 * 64;
    const { peak_bytes_by_category: bytes } = row;
    const mask = 8304; // of 8,300 keys, in 16-byte units
    expect(bytes.workspace - without.peak_bytes_by_category.workspace).toBe(300 * keysAndValues + mask);
    expect([without.past_model_context, row.past_model_context]).toEqual([false, true]); // of 8192
    expect(row.flops).toBeGreaterThan(without.flops);
    const named = await sidenet("plan", ...args, "--method", "lora", "--prefix-tokens", "300");
    expect(named.err).toMatch(/L-METHOD.*a prefix is read once.*the method changes these/);
    const all = await rowsOf("--prefix-tokens", "300", "--quantize", "none");
    expect(all.plans.map(({ method }) => method)).toEqual(["ladder", "xladder", "head"]);
    expect(all.err).toMatch(/^without lora, full: a prefix is read once/m);
  });

  it("writes live bytes after each op, whose highest is the peak", async () => {
    const file = join(folder, "timeline.jsonl");
    const args = [
      "--model",
      "SmolLM2-135M",
      "--method",
      "ladder",
      "--context",
      "64",
      "--memory-timeline",
      file,
    ];
    const { peak_bytes } = (await sidenet("plan", ...args, "--json")).json() as unknown as Row;
    const lines = (await readFile(file, "utf8")).trim().split("\n");
    const samples = lines.map(
      (line) => JSON.parse(line) as { highest_bytes: number; live_bytes: number; live: object },
    );
    expect(Math.max(...samples.map(({ highest_bytes }) => highest_bytes))).toBe(peak_bytes);
    for (const { live, live_bytes } of samples) {
      expect(Object.values(live).reduce((a: number, b: number) => a + b, 0)).toBe(live_bytes);
    }
  });

  it("names bundled models where one is not found, and refuses sizes, methods and levers that are none", async () => {
    const missing = await sidenet("plan", "--model", join(folder, "nowhere"));
    expect(missing).toMatchObject({ exitCode: 1 });
    expect(missing.err).toContain("Bundled are Llama-2-7B");
    for (const wrong of [
      ["--memory", "twelve"],
      ["--memory", "12"],
      ["--method", "lore"],
      ["--method", "qlora+turbo"],
      ["--method", "qlora+int8-rungs"],
      ["--method", "qlora", "ladder", "qlora"],
      ["--device", "wasm", "--adapter-class", "integrated"],
      ["--context", ""],
    ]) {
      expect((await sidenet("plan", "--model", "Qwen2.5-7B", ...wrong)).exitCode, wrong.join(" ")).toBe(2);
    }
  });

  it("takes lists with spaces, commas or both", async () => {
    const args = [
      "--model",
      "SmolLM2-135M",
      "--method",
      "head,",
      "qlora",
      "--context",
      "32,64",
      "96",
      "--json",
    ];
    const { plans } = (await sidenet("plan", ...args)).json() as { plans: Row[] };
    const wanted = [32, 64, 96].flatMap((context) =>
      ["head", "qlora"].map((method) => ({ method, context })),
    );
    expect(plans.map(({ method, context }) => ({ method, context }))).toEqual(wanted);
  });

  it("plans the peak of a run that accumulates gradients, to the byte", async () => {
    const files = await writeTinyFiles(folder);
    const shared = [
      "--model",
      files.model,
      "--method",
      "lora",
      "--device",
      "cpu",
      "--batch-size",
      "2",
      "--json",
    ];
    const data = ["--data", files.data, "--held-out", "4", "--steps", "1", "--sample-tokens", "0"];
    const peaks: unknown[] = [];
    for (const batches of ["1", "3"]) {
      const accumulation = ["--gradient-accumulation", batches];
      const output = ["--output", join(folder, `run-${batches}`)];
      const run = (await sidenet("train", ...shared, ...data, ...accumulation, ...output)).json();
      const plan = (await sidenet("plan", ...shared, ...accumulation, "--context", "32")).json();
      expect(run.tokens).toBe(2 * 32 * Number(batches));
      expect(plan.peak_bytes_by_category).toEqual(run.peak_bytes_by_category);
      expect(plan.flops).toBe(run.flops);
      peaks.push(plan.peak_bytes);
    }
    expect(peaks[1]).toBeGreaterThan(peaks[0] as number);
  });

  it("plans the peak of a run over files that are in NF4, to the byte, whatever --quantize says", async () => {
    const { model: source, data } = await writeTinyFiles(folder);
    const model = join(folder, "in-nf4");
    await sidenet("convert", "--model", source, "--output", model, "--dtype", "nf4", "--device", "cpu");
    for (const [method, quantize] of [
      ["lora", "auto"],
      ["head", "none"],
      ["qlora", "none"],
    ] as const) {
      const shared = [
        "--model",
        model,
        "--method",
        method,
        "--quantize",
        quantize,
        "--device",
        "cpu",
        "--json",
      ];
      const args = ["--data", data, "--held-out", "4", "--steps", "1", "--sample-tokens", "0"];
      const output = ["--output", join(folder, `nf4-${method}`), "--batch-size", "1"];
      const run = (await sidenet("train", ...shared, ...args, ...output)).json();
      const plan = (await sidenet("plan", ...shared, "--context", "32")).json();
      expect(plan.peak_bytes_by_category, method).toEqual(run.peak_bytes_by_category);
    }
    const full = await sidenet("plan", "--model", model, "--method", "full");
    expect(full.err).toMatch(/L-METHOD\] .* from files that are not in NF4 themselves/);
  });

  it("reads a config.json and nothing else", async () => {
    const config = await readFile(new URL("../configs/SmolLM2-135M/config.json", import.meta.url), "utf8");
    await writeFile(join(folder, "config.json"), config);
    const plan = async (model: string) =>
      (await sidenet("plan", "--model", model, "--method", "qlora", "--context", "32", "--json")).json();
    expect((await plan(folder)).peak_bytes).toBe((await plan("SmolLM2-135M")).peak_bytes);
  });
});

it("sidenet compare plans methods side by side where there is no data, and writes results.json", async () => {
  const output = join(folder, "compare");
  const args = ["--model", "SmolLM2-135M", "--context", "64", "16384", "--output", output];
  const { exitCode, out } = await sidenet("compare", ...args);
  expect(exitCode).toBe(0);
  expect(out).toContain("past the model's own context of 8192");
  const { results } = JSON.parse(await readFile(join(output, "results.json"), "utf8")) as { results: Row[] };
  const names = ["ladder", "xladder", "qlora", "qlora+checkpointing", "lora"];
  expect(results.map(({ method }) => method)).toEqual([...names, ...names]);
  expect(results.map((row) => row.past_model_context)).toEqual(results.map((row) => row.context > 8192));
  const [side, deeper] = results;
  const off = Math.abs(side.trainable_parameters - deeper.trainable_parameters) / side.trainable_parameters;
  expect(off).toBeLessThanOrEqual(0.01);
});

describe("of several methods", () => {
  const plan = (...args: string[]) => sidenet("plan", "--model", "tiny-books", "--context", "32", ...args);
  const compare = (...args: string[]) =>
    sidenet("compare", "--model", "tiny-books", "--context", "32", ...args);

  it("a mistake in the options is the same as of one: no table, and exit code 2", async () => {
    for (const run of [
      plan("--method", "qlora", "--lora-layers", "4-9"),
      plan("--method", "ladder", "qlora", "--lora-layers", "4-9"),
      plan("--lora-layers", "4-9"),
      plan("--method", "ladder", "qlora", "--lora-layers", "4-9", "--memory", "1GB"),
      compare("--methods", "ladder", "qlora", "--lora-layers", "4-9"),
      compare("--lora-layers", "4-9"),
    ]) {
      const { exitCode, out, err } = await run;
      expect({ exitCode, out }).toEqual({ exitCode: 2, out: "" });
      expect(err).toMatch(/\[L-OPTION\] --lora-layers: layer 6 is past/);
    }
    for (const methods of [["full"], ["ladder", "full"]]) {
      const run = await plan("--method", ...methods, "--quantize", "nf4");
      expect(run).toMatchObject({ exitCode: 2, out: "" });
      expect(run.err).toContain("[L-METHOD]");
    }
  });

  it("those that nobody named, and that other options exclude, are left out with a note", async () => {
    const run = await plan("--quantize", "none");
    expect(run.exitCode).toBe(0);
    expect(run.out).toMatch(/^ladder .*\nxladder .*\nlora .*\nfull .*\nhead /m);
    expect(run.err).toMatch(/^without qlora, qlora\+checkpointing: QLoRA is LoRA over weights in NF4/m);
    const compared = await compare("--quantize", "none");
    expect(compared.exitCode).toBe(0);
    expect(compared.out).not.toContain("qlora");
  });

  it("each takes the options that are its own", async () => {
    const run = await compare(
      "--methods",
      "ladder",
      "xladder",
      "lora",
      "--rungs-at",
      "2",
      "6",
      "--rank",
      "4",
      "--json",
    );
    expect(run.exitCode, run.err).toBe(0);
    const none = await compare("--methods", "xladder", "lora", "--rungs-at", "2", "6");
    expect(none.exitCode).toBe(2);
    expect(none.err).toContain("--rungs-at is for ladder, and does nothing for xladder, lora");
  });

  it("one that takes too large a buffer stands in its row, and the exit code is 1", async () => {
    const contexts = ["--context", "32", "900000000", "--batch", "9", "--method", "ladder"];
    const run = await plan(...contexts);
    expect(run.out).toMatch(/^ladder +32.*\nladder +900000000 +T-TOO-LARGE/m);
    expect(run.exitCode).toBe(1);
  });
});

it("docs/memory.md has the tables that scripts/memory-tables.mjs makes", async () => {
  const { FILE, memoryTables, withTables } = await import("../../../scripts/memory-tables.mjs");
  const page = await readFile(FILE, "utf8");
  expect(withTables(page, await memoryTables()) === page, "run the script").toBe(true);
}, 300_000); // contexts of 32,768 on 7B models
