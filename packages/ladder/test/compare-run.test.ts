// `sidenet compare` with runs, not plans: the model that comes with the package, two methods, two steps.
import { mkdir, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { hostname } from "node:os";
import { join } from "node:path";
import { CATEGORIES } from "@sidenet/tensor";
import { beforeAll, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import type { TrainSummary } from "../src/node/train-run.ts";
import { type Captured, expectPeak, sidenet } from "./capture.ts";

const folder = temporaryFolder();
let args: string[] = [];
beforeAll(async () => {
  const data = join(folder, "data.jsonl");
  const texts = Array.from(
    { length: 10 },
    (_, i) => `The ${i}. mouse went to the mill, and the mill was shut.`,
  );
  await writeFile(data, texts.map((text) => `${JSON.stringify({ text })}\n`).join(""));
  args = ["--model", "tiny-books", "--data", data, "--methods", "ladder", "lora", "--steps", "2"];
  args.push("--batch-size", "2", "--held-out", "2", "--device", "wasm");
});

const compare = (output: string, ...more: string[]): Promise<Captured> =>
  sidenet("compare", ...args, "--output", join(folder, output), ...more);

it("sidenet compare trains methods on the same records, and has them in one table, in JSON and in results.json", async () => {
  const run = await compare("json", "--json");
  expect(run.exitCode).toBe(0);
  const json = run.json();
  expect(json).toMatchObject({
    model: "tiny-books",
    planned: false,
    device: expect.stringMatching(/^wasm: ./),
    steps: 2,
    batch_size: 2,
  });
  const results = json.results as TrainSummary[];
  expect(results.map(({ method }) => method)).toEqual(["ladder", "lora"]);
  for (const result of results) {
    expectPeak({ ...result });
    expect(result.loss).toHaveLength(2);
    expect(result.eval_loss).toBeGreaterThan(0);
    for (const key of ["trainable_parameters", "flops", "tokens", "tokens_per_second", "seconds"] as const) {
      expect(result[key], key).toBeGreaterThan(0);
    }
    expect(result.device).toBe(json.device);
    expect(await readdir(join(folder, "json", result.method))).toContain("adapter_model.safetensors");
  }
  const [ladder, lora] = results;
  // An adapter that does nothing yet: the first loss and the losses before are of the backbone, as each stores it.
  expect(ladder.tokens).toBe(lora.tokens);
  expect(Math.abs((ladder.loss[0] ?? 0) - (lora.loss[0] ?? 9))).toBeLessThan(0.2);
  expect(ladder.peak_bytes).not.toBe(lora.peak_bytes);
  expect(JSON.parse(await readFile(join(folder, "json", "results.json"), "utf8"))).toEqual(json);

  const shown = await compare("shown");
  const [head, ...rows] = shown.out.trimEnd().split("\n");
  const columns = ["method", "loss", "eval loss", "tokens/s", "s", "peak", ...CATEGORIES, "trained"];
  expect(head.trim().split(/ {2,}/)).toEqual(columns);
  // The same seed, so the same losses as above.
  for (const [i, { method, loss, eval_loss }] of results.entries()) {
    const cells = rows[i].trim().split(/ {2,}/);
    expect(cells).toHaveLength(columns.length);
    expect(cells.slice(0, 3)).toEqual([method, loss[1]?.toFixed(4), eval_loss?.toFixed(4)]);
  }
  expect(shown.out).toContain(`report: ${join(folder, "shown", "report.html")}`);
});

it("sidenet compare takes weights of files and a share of held-out records, as train does", async () => {
  const data = args[args.indexOf("--data") + 1];
  const more = [...args, "--data", `${data}:2`, "--held-out", "0.3", "--methods", "head"];
  const run = await sidenet("compare", ...more, "--output", join(folder, "shares"), "--json");
  expect(run.exitCode).toBe(0);
  const { settings } = JSON.parse(await readFile(join(folder, "shares", "head", "run.json"), "utf8"));
  expect(settings["held-out"]).toBe(0.3);
});

it("sidenet compare with data wants a folder for what it trains", async () => {
  const run = await sidenet("compare", ...args);
  expect(run).toMatchObject({ exitCode: 2, out: "" });
  expect(run.err).toContain("--data needs --output");
});

it("sidenet compare refuses options that would do nothing: of training without data, of a plan with data, of methods that it has not", async () => {
  const output = join(folder, "none");
  const planned = (...more: string[]) => sidenet("compare", "--model", "tiny-books", ...more);
  const trained = (...more: string[]) => compare("none", ...more);
  const cases: [run: Promise<Captured>, message: RegExp][] = [
    [planned("--template", "chat"), /--template is for training, and without --data .* only planned/],
    [planned("--steps", "9", "--output", output), /--steps is for training/],
    [
      trained("--context", "64"),
      /--context is for plans, and with --data .* Leave it out, or add --device meta/,
    ],
    [trained("--adapter-class", "software"), /--adapter-class is for plans/],
    [trained("--delta", "1"), /--delta is for xladder, and does nothing for ladder, lora/],
    [trained("--methods", "qlora", "ladder"), /the method ladder is named twice/],
    [trained("--patience", "2"), /--patience counts the evaluations of --eval-every/],
    [trained("--resume"), /unknown option '--resume'/],
    [trained("--method", "ladder"), /unknown option '--method'/],
  ];
  for (const [run, message] of cases) {
    const { exitCode, out, err } = await run;
    expect(err).toMatch(message);
    expect({ exitCode, out }).toEqual({ exitCode: 2, out: "" });
  }
  expect(await readdir(folder)).not.toContain("none");
});

it("sidenet compare with data reports what does not fit the model, or the weights, before it trains the first method", async () => {
  for (const [more, message] of [
    [["--lora-layers", "9"], /\[L-OPTION\] --lora-layers: layer 9 is past/],
    [["--methods", "qlora", "--quantize", "none"], /\[L-METHOD\] QLoRA is LoRA over weights in NF4/],
  ] as const) {
    const run = await compare("mistaken", ...more);
    expect(run.err).toMatch(message);
    expect(run.err).not.toMatch(/^step/m);
    expect(run).toMatchObject({ exitCode: 2, out: "" });
  }
});

it("sidenet compare plans its own training with --device meta: the batch is that of the runs, and --steps is no mistake", async () => {
  const run = async (...more: string[]) => {
    const plan = ["--model", "tiny-books", "--methods", "ladder", "--device", "meta", "--context", "64"];
    const { exitCode, err, json } = await sidenet("compare", ...plan, "--json", ...more);
    expect(exitCode, err).toBe(0);
    return json() as { batch_size: number; gradient_accumulation: number; results: { tokens: number }[] };
  };
  const data = args[args.indexOf("--data") + 1];
  expect(await run("--data", data, "--steps", "7")).toMatchObject({
    batch_size: 4,
    results: [{ tokens: 256 }],
  });
  expect(await run()).toMatchObject({ batch_size: 1, results: [{ tokens: 64 }] });
  const accumulated = await run("--batch-size", "2", "--gradient-accumulation", "3");
  expect(accumulated).toMatchObject({ gradient_accumulation: 3, results: [{ tokens: 384 }] });
});

it("sidenet compare replaces earlier results and runs only where it is told to", async () => {
  const bytes = await readFile(join(folder, "json", "results.json"), "utf8");
  const again = await compare("json");
  expect(again.exitCode).toBe(1);
  expect(again.err).toMatch(/L-RUN-EXISTS.*json holds a comparison already.*--overwrite/);
  expect(await readFile(join(folder, "json", "results.json"), "utf8")).toBe(bytes);

  // As after a kill, or where `train` wrote to a folder of that name: told before the first method, not at the second.
  await rm(join(folder, "json", "results.json"));
  await rm(join(folder, "json", "ladder"), { recursive: true });
  const killed = await compare("json");
  expect(killed.err).toMatch(/L-RUN-EXISTS.*lora holds a training run already.*--overwrite/);
  expect(await readdir(join(folder, "json"))).not.toContain("ladder");
  expect((await compare("json", "--overwrite")).exitCode).toBe(0);
});

it("sidenet compare does not start where another process writes a comparison or trains", async () => {
  const output = join(folder, "busy");
  await mkdir(output);
  await writeFile(join(output, ".lock"), `${process.ppid} ${hostname()}`);
  const run = await compare("busy");
  expect(run.exitCode).toBe(1);
  expect(run.err).toMatch(new RegExp(`L-RUN-BUSY.*process ${process.ppid} .*busy`));
  expect(await readdir(output)).toEqual([".lock"]);
});
