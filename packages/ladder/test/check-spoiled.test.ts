/** Golden cases whose own values are spoiled: `sidenet check` fails them and never lets them pass. */
import { join } from "node:path";
import { expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import type { CaseResult } from "../src/check/check.ts";
import { sidenet } from "./capture.ts";
import { adapterCase, f32, matmulCase, modelCase, type TensorFile, writeFolder } from "./golden-cases.ts";

const root = temporaryFolder();

async function check(folder: string, device: string) {
  const run = await sidenet("check", join(root, folder), "--json", "--device", device);
  return run.json() as { passed: number; failed: number; skipped: number; cases: CaseResult[] };
}

function spoil(file: TensorFile, name: string, value: number): TensorFile {
  const data = Float32Array.from(file[name].data as Float32Array);
  data[data.length - 1] = value;
  return { ...file, [name]: f32(file[name].shape, data) };
}

it("an expected value that is not finite fails its case, whichever tensor holds it", async () => {
  const model = await modelCase();
  const cases: [kind: string, files: Record<string, unknown>, tensors: string[]][] = [
    ["ops", matmulCase(), ["y", "da"]],
    ["models", model, ["hidden_states.1", "logits", "loss"]],
    ["adapters", await adapterCase(), ["y", "grad.ladder.norm.weight", "losses", "after.ladder.up.weight"]],
  ];
  await writeFolder(join(root, "spoiled/models/tiny"), model);
  for (const [kind, files, tensors] of cases) {
    for (const tensor of tensors) {
      for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
        const expected = spoil(files["expected.safetensors"] as TensorFile, tensor, value);
        const folder = join(root, `spoiled/${kind}/${tensor}-${value}`);
        await writeFolder(folder, { ...files, "expected.safetensors": expected });
      }
    }
  }
  const json = await check("spoiled", "cpu");
  const passed = json.cases.filter(({ status }) => status === "passed");
  expect(passed.map(({ name }) => name)).toEqual(["models/tiny"]);
  expect(json).toMatchObject({ failed: 18, skipped: 0 });
});

it("a label outside the vocabulary fails by name", async () => {
  const files: Record<string, unknown> = await modelCase();
  const batch = files["batch.json"] as { labels: number[][] };
  const labels = batch.labels.map((row) => row.map(() => 1_000_000));
  await writeFolder(join(root, "label"), { ...files, "batch.json": { ...batch, labels } });
  for (const device of ["cpu", "wasm"]) {
    const { cases } = await check("label", device);
    expect(cases[0]).toMatchObject({ status: "failed", reason: expect.stringMatching(/L-TOKEN.*1000000/) });
  }
});

/** A case by its kind, with the names of the tensors that golden/README.md requires of it. */
async function wholeCases(): Promise<[kind: string, files: Record<string, unknown>, required: string[]][]> {
  const [model, adapter] = [await modelCase(), await adapterCase()];
  const names = (files: Record<string, unknown>) => Object.keys(files["expected.safetensors"] as TensorFile);
  return [
    ["ops", matmulCase(), ["y", "da", "db"]],
    ["models", model, names(model).filter((name) => name !== "y")],
    ["adapters", adapter, names(adapter).filter((name) => !name.startsWith("hidden_states."))],
  ];
}

it("a case that lacks an expected tensor, or has one that nothing is compared with, does not pass", async () => {
  const wanted = new Map<string, string>();
  for (const [kind, files, required] of await wholeCases()) {
    const expected = files["expected.safetensors"] as TensorFile;
    const put = async (folder: string, tensors: TensorFile, name: string) => {
      wanted.set(`${kind}/${folder}`, name);
      await writeFolder(join(root, `lacking/${kind}/${folder}`), {
        ...files,
        "expected.safetensors": tensors,
      });
    };
    for (const name of required) {
      const { [name]: _, ...rest } = expected;
      await put(`without-${name}`, rest, name);
    }
    await put("with-another", { ...expected, "grad.another": f32([1], [1]) }, "grad.another");
  }
  await writeFolder(join(root, "lacking/models/tiny"), await modelCase());
  const { cases } = await check("lacking", "cpu");
  expect(cases.length).toBe(wanted.size + 1);
  for (const { name, status, reason } of cases) {
    expect(status, name).toBe(name === "models/tiny" ? "passed" : "skipped");
    expect(reason ?? "", name).toContain(wanted.get(name) ?? "");
  }
});

it("an expected tensor of another shape or type fails its case, also where the number of values is right", async () => {
  const wanted = new Map<string, string>();
  for (const [kind, files] of await wholeCases()) {
    const expected = files["expected.safetensors"] as TensorFile;
    for (const [name, tensor] of Object.entries(expected)) {
      const isVector = tensor.shape.filter((extent) => extent !== 1).length < 2;
      if (isVector && name !== "greedy") continue; // no other shape has as many values
      const other =
        name === "greedy" ? f32(tensor.shape, tensor.data) : { ...tensor, shape: [tensor.data.length] };
      wanted.set(`${kind}/${name}`, name);
      const spoiled = { ...expected, [name]: other };
      await writeFolder(join(root, `shapes/${kind}/${name}`), { ...files, "expected.safetensors": spoiled });
    }
  }
  await writeFolder(join(root, "shapes/models/tiny"), await modelCase());
  const { cases } = await check("shapes", "cpu");
  expect(cases.length).toBe(wanted.size + 1);
  for (const { name, status, reason } of cases) {
    expect(status, name).toBe(name === "models/tiny" ? "passed" : "failed");
    if (wanted.has(name))
      expect(reason, name).toContain(`L-CHECK-EXPECTED] expected.safetensors holds "${wanted.get(name)}"`);
  }
});
