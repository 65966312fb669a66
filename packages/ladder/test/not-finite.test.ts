// A model that computes NaN says so, and where they came from: in every command that uses it.
import { existsSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, TestRandom } from "@sidenet/tensor";
import { beforeAll, describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { makeAdapter } from "../src/methods/method.ts";
import { notFinite } from "../src/not-finite.ts";
import { sidenet, sidenetWith } from "./capture.ts";
import { writeTinyModel } from "./tiny-files.ts";
import { drawModel, randomDecoder } from "./tiny-model.ts";

const DAMAGED = "model.layers.1.mlp.up_proj.weight";

const root = temporaryFolder();
let common: string[];
beforeAll(async () => {
  const { model } = await writeTinyModel(root, (tensors) => {
    const { data, shape } = tensors[DAMAGED];
    (data as Float32Array)[5 * shape[1] + 3] = Number.NaN;
  });
  common = ["--model", model, "--device", "cpu"];
});

const NAMED = new RegExp(
  `not finite[\\s\\S]*${DAMAGED.replaceAll(".", "\\.")}\\[5, 3\\] = NaN[\\s\\S]*damaged`,
);

describe("a model with a NaN among its weights", () => {
  it.each([
    ["one prompt", ["--prompt", "ab"]],
    ["several", ["--prompt", "ab", "--prompt", "c"]],
    ["draws", ["--prompt", "ab", "--temperature", "1"]],
  ])("generates no text, but an error that names it: %s", async (_, args) => {
    const run = await sidenet("generate", ...common, ...args, "--max-tokens", "4", "--json");
    expect(run.exitCode).toBe(1);
    const { error } = run.json() as { error: { code: string; message: string } };
    expect(error.code).toBe("L-DIVERGED");
    expect(error.message).toMatch(NAMED);
  });

  it("is told in a chat", async () => {
    const run = await sidenetWith(["hello"], "chat", ...common);
    expect(run).toMatchObject({ exitCode: 1, err: expect.stringMatching(NAMED) });
  });

  it.each([
    ["choice", { question: "a?", choices: ["b", "cd"], label: 0 }, []],
    ["gsm8k", { question: "1+1?", answer: "#### 2" }, ["--answer-tokens", "4"]],
    ["loss", { prompt: "abc", completion: " def" }, []],
    ["perplexity", { text: "abc def ghi" }, []],
  ])("has no score: %s", async (task, row, more) => {
    const data = join(root, `${task}.jsonl`);
    await writeFile(data, `${JSON.stringify(row)}\n`);
    const run = await sidenet("eval", ...common, "--task", task, "--data", data, ...more);
    expect(run).toMatchObject({ exitCode: 1, err: expect.stringMatching(NAMED) });
  });

  it("ends training, which advises no other rate then", async () => {
    const data = join(root, "train.jsonl");
    await writeFile(data, `${JSON.stringify({ text: "abc def ghi" })}\n`.repeat(4));
    const args = ["--data", data, "--output", join(root, "out"), "--quantize", "none", "--held-out", "1"];
    const run = await sidenet("train", ...common, ...args, "--steps", "2");
    expect(run.exitCode).toBe(1);
    expect(run.err).toMatch(/L-DIVERGED\][\s\S]*up_proj\.weight\[5, 3\] = NaN/);
    expect(run.err).not.toContain("--learning-rate");
  });

  it("ends training before the first update where only held-out records meet it, and compare names it", async () => {
    const DAMAGED = "model.embed_tokens.weight";
    await mkdir(join(root, "x"));
    const { model } = await writeTinyModel(join(root, "x"), (tensors) => {
      const { data, shape } = tensors[DAMAGED];
      (data as Float32Array)[("x".charCodeAt(0) + 3) * shape[1]] = Number.NaN;
    });
    const data = join(root, "held.jsonl");
    const line = (text: string) => `${JSON.stringify({ text })}\n`;
    await writeFile(data, line("abc def ghi").repeat(4) + line("abc x"));
    const shared = ["--model", model, "--device", "cpu", "--data", data, "--held-out", "1", "--steps", "2"];
    const output = join(root, "held");
    const run = await sidenet("train", ...shared, "--output", output);
    expect(run.exitCode).toBe(1);
    expect(run.err).toMatch(/L-DIVERGED\] the held-out loss of the frozen model is not finite.*embed_tokens/);
    expect(existsSync(output)).toBe(false);
    const compared = await sidenet("compare", ...shared, "--methods", "ladder", "--output", `${output}s`);
    expect(compared.out).toMatch(/^ladder +L-DIVERGED( +-)+$/m);
    expect(compared.out).not.toContain("NaN");
  });
});

describe("notFinite", () => {
  const device = new CpuDevice();
  const config = drawModel(new TestRandom(1));
  it("names a value of the adapter, and else what may help", async () => {
    using decoder = randomDecoder(device, config);
    using adapter = makeAdapter({ method: "lora" }, decoder, "tiny");
    expect((await notFinite("x", decoder, adapter)).message).toMatch(/All weights are finite.*--dtype f32/);
    const [[name, tensor]] = adapter.parameters;
    const values = new Float32Array(tensor.size);
    values[tensor.size - 1] = Number.POSITIVE_INFINITY;
    device.scope(() => device.ops.accumulate(tensor, device.tensor(values, tensor.shape)));
    const last = tensor.shape.map((size) => size - 1).join(", ");
    expect((await notFinite("x", decoder, adapter)).message).toContain(
      `The adapter's ${name}[${last}] = Infinity`,
    );
  });
});
