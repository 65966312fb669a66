import { join } from "node:path";
import { CpuDevice } from "@sidenet/tensor";
import { describe, expect, it } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { type CaseResult, checkCase } from "../src/check/check.ts";
import { findCases } from "../src/node/golden-folder.ts";
import { sidenet } from "./capture.ts";
import {
  adapterCase,
  f32,
  i32,
  MODEL,
  matmulCase,
  modelCase,
  SIDE,
  type TensorFile,
  tolerance,
  writeFolder,
} from "./golden-cases.ts";

const DEVICES = process.env.SIDENET_DEVICE === "cpu" ? ["cpu", "wasm"] : ["cpu", "wasm", "webgpu"];

const root = temporaryFolder();

const write = (name: string, files: Readonly<Record<string, unknown>>) =>
  writeFolder(join(root, name), files);

/** Results by case name of `sidenet check FOLDER --json`. */
async function check(folder: string, ...args: string[]) {
  const run = await sidenet("check", join(root, folder), "--json", ...args);
  const json = run.json() as {
    passed: number;
    failed: number;
    skipped: number;
    device: string;
    cases: CaseResult[];
  };
  return { ...run, json, byName: new Map(json.cases.map((result) => [result.name, result])) };
}

/** Ops whose expectation is worked out here, without the library. */
async function writeOps(folder: string): Promise<void> {
  await write(`${folder}/matmul/by-hand`, matmulCase());
  await write(`${folder}/slice/corner`, {
    "params.json": { op: "slice", start: [1, 0], stop: [3, 1], ...tolerance(["y", "dx"]) },
    "inputs.safetensors": { x: f32([3, 2], [1, 2, 3, 4, 5, 6]), dy: f32([2, 1], [7, 8]) },
    "expected.safetensors": { y: f32([2, 1], [3, 5]), dx: f32([3, 2], [0, 0, 7, 0, 8, 0]) },
  });
  await write(`${folder}/reduce/mean-of-last`, {
    "params.json": { op: "reduce", kind: "mean", axis: -1, ...tolerance(["y", "dx"]) },
    "inputs.safetensors": { x: f32([2, 2], [1, 3, 5, 9]), dy: f32([2], [1, 4]) },
    "expected.safetensors": { y: f32([2], [2, 7]), dx: f32([2, 2], [0.5, 0.5, 2, 2]) },
  });
  await write(`${folder}/clip/two`, {
    "params.json": { op: "clip", count: 2, max_norm: 1, ...tolerance(["norm", "clipped0", "clipped1"]) },
    "inputs.safetensors": { g0: f32([1], [3]), g1: f32([1, 1], [-4]) },
    "expected.safetensors": {
      norm: f32([], [5]),
      clipped0: f32([1], [3 / 5.000001]),
      clipped1: f32([1, 1], [-4 / 5.000001]),
    },
  });
  // Two rows, one ignored: the loss of the other alone, with equal logits. Large ones must lose nothing to rounding.
  for (const [name, logit] of [
    ["even", 1],
    ["even-and-large", 5000],
  ] as const) {
    await write(`${folder}/cross_entropy/${name}`, {
      "params.json": { op: "cross_entropy", ignore_index: -100, ...tolerance(["loss", "dlogits"]) },
      "inputs.safetensors": {
        logits: f32([2, 4], [logit, logit, logit, logit, 5, 6, 7, 8]),
        targets: i32([2], [2, -100]),
        dloss: f32([], [4]),
      },
      "expected.safetensors": {
        loss: f32([], [Math.log(4)]),
        dlogits: f32([2, 4], [1, 1, -3, 1, 0, 0, 0, 0]),
      },
    });
  }
  // Two equal keys and a score of 8,000 on both: weights of one half, which large scores must not blur.
  await write(`${folder}/attention/equal-and-large`, {
    "params.json": { op: "attention", query_offset: 0, scale: 1, ...tolerance(["y", "dq", "dk", "dv"]) },
    "inputs.safetensors": {
      q: f32([1, 2, 1, 2], [80, 0, 80, 0]),
      k: f32([1, 2, 1, 2], [100, 0, 100, 0]),
      v: f32([1, 2, 1, 2], [1, 0, 0, 1]),
      dy: f32([1, 2, 1, 2], [0, 0, 1, 0]),
    },
    "expected.safetensors": {
      y: f32([1, 2, 1, 2], [1, 0, 0.5, 0.5]),
      dq: f32([1, 2, 1, 2], [0, 0, 0, 0]),
      dk: f32([1, 2, 1, 2], [20, 0, -20, 0]),
      dv: f32([1, 2, 1, 2], [0.5, 0, 0.5, 0]),
    },
  });
  await write(`${folder}/gate_fusion/half`, {
    "params.json": { op: "gate_fusion", temperature: 0.1, ...tolerance(["y", "ds", "dr", "dalpha"]) },
    "inputs.safetensors": {
      s: f32([2], [2, 4]),
      r: f32([2], [0, 8]),
      alpha: f32([1], [0]),
      dy: f32([2], [1, 1]),
    },
    "expected.safetensors": {
      y: f32([2], [1, 6]),
      ds: f32([2], [0.5, 0.5]),
      dr: f32([2], [0.5, 0.5]),
      dalpha: f32([1], [(2 - 4) * 2.5]), // Σ (s - r) · μ(1 - μ) / τ
    },
  });
}

/** Ten steps of AdamW on one number, as PyTorch writes them. */
function adamwCase() {
  const [lr, b1, b2, eps, decay] = [0.01, 0.9, 0.99, 1e-8, 0.1];
  const g = Array.from({ length: 10 }, (_, t) => Math.sin(t + 1));
  let [p, m, v] = [0.5, 0, 0];
  const trail = g.map((gradient, t) => {
    const gt = Math.fround(gradient);
    p -= lr * decay * p;
    m = b1 * m + (1 - b1) * gt;
    v = b2 * v + (1 - b2) * gt * gt;
    p -= (lr * (m / (1 - b1 ** (t + 1)))) / (Math.sqrt(v / (1 - b2 ** (t + 1))) + eps);
    return p;
  });
  return {
    "params.json": {
      op: "adamw",
      lr,
      betas: [b1, b2],
      eps,
      weight_decay: decay,
      tolerance: { float32: { p: 1e-5, m: 1e-5, v: 1e-5 } },
    },
    "inputs.safetensors": { p: f32([1], [0.5]), g: f32([10, 1], g) },
    "expected.safetensors": { p: f32([10, 1], trail), m: f32([1], [m]), v: f32([1], [v]) },
  };
}

describe.each(DEVICES)("sidenet check --device %s", (device) => {
  it("passes cases worked out by hand, ops with their gradients and the optimizer", async () => {
    await writeOps("good/ops");
    await write("good/ops/adamw/one-number", adamwCase());
    const { json, exitCode } = await check("good", "--device", device);
    expect(json).toMatchObject({ passed: 9, failed: 0, skipped: 0, dtype: "f32" });
    expect(json.device).toMatch(new RegExp(`^${device}: .`));
    expect(exitCode).toBe(0);
    for (const result of json.cases) {
      expect(result, result.name).toMatchObject({ status: "passed", reason: null, tolerance: 1e-5 });
      expect(result.error).toBeLessThanOrEqual(1e-5);
    }
  });

  it("passes a model, an adapter and its training against the reference in double", async () => {
    await write("whole/models/tiny", await modelCase());
    await write("whole/adapters/side", await adapterCase());
    const { json, exitCode } = await check("whole", "--device", device);
    expect(json.cases.map(({ name, kind, status, reason }) => ({ name, kind, status, reason }))).toEqual([
      { name: "adapters/side", kind: "adapter", status: "passed", reason: null },
      { name: "models/tiny", kind: "model", status: "passed", reason: null },
    ]);
    expect(exitCode).toBe(0);
  });

  it("holds float16 storage to float16 tolerances, and skips cases without them", async () => {
    await writeOps("half/ops");
    await write("half/ops/adamw/one-number", adamwCase());
    const { json, byName } = await check("half", "--device", device, "--dtype", "f16");
    expect(json).toMatchObject({ passed: 8, failed: 0, skipped: 1, dtype: "f16" });
    expect(byName.get("ops/adamw/one-number")?.reason).toMatch(/float16/);
  });

  it("fails a wrong expectation, naming the tensor, the error and the tolerance", async () => {
    await write("wrong/ops/matmul/good", matmulCase());
    await write("wrong/ops/matmul/nudged", matmulCase(0.01));
    const embeddings = f32([13, 12], new Float32Array(156).fill(0.1));
    await write("wrong/models/other-weights", await modelCase({ "model.embed_tokens.weight": embeddings }));
    const { json, byName, exitCode } = await check("wrong", "--device", device);
    expect(json).toMatchObject({ passed: 1, failed: 2, skipped: 0 });
    expect(exitCode).toBe(1);
    const nudged = byName.get("ops/matmul/nudged");
    expect(nudged).toMatchObject({ status: "failed", tensor: "y", tolerance: 1e-5 });
    expect(nudged?.error).toBeCloseTo(0.01 / Math.hypot(-4.5, 2.5, -6, 3.26), 4);
    expect(byName.get("models/other-weights")).toMatchObject({ status: "failed" });
  });

  it("fails an adapter by the gradient, the step or the count that is off", async () => {
    const good = await adapterCase();
    const expected = good["expected.safetensors"] as TensorFile;
    const spoil = (name: string) => ({
      ...expected,
      [name]: f32(
        expected[name].shape,
        (expected[name].data as Float32Array).map((x) => 1.01 * x),
      ),
    });
    const info = good["case.json"] as object;
    const spoiled: [tensor: string, files: Record<string, unknown>][] = [
      ["grad.ladder.norm.weight", { "expected.safetensors": spoil("grad.ladder.norm.weight") }],
      ["after.ladder.up.weight", { "expected.safetensors": spoil("after.ladder.up.weight") }],
      ["side_states.2", { "expected.safetensors": spoil("side_states.2") }],
      ["trainable_parameters", { "case.json": { ...info, trainable_parameters: 1 } }],
      [
        "grad.ladder.up.weight (exactly zero)",
        { "case.json": { ...info, exactly_zero_gradients: ["ladder.up.weight"] } },
      ],
    ];
    await write("adapters-off/models/tiny", await modelCase());
    for (const [i, [, files]] of spoiled.entries()) {
      await write(`adapters-off/adapters/${i}`, { ...good, ...files });
    }
    const { json } = await check("adapters-off", "--device", device, "--filter", "adapters");
    expect(json.cases.map(({ status, tensor }) => [status, tensor])).toEqual(
      spoiled.map(([tensor]) => ["failed", tensor]),
    );
  });

  it("fails a result that is not finite", async () => {
    await write("overflow", {
      ...matmulCase(),
      "inputs.safetensors": {
        a: f32([2, 3], [3e38, 3e38, 0, 0, 0, 0]),
        b: f32([3, 2], [3, 0, 3, 0, 0, 0]),
        dy: f32([2, 2], [1, 1, 1, 1]),
      },
    });
    const { json } = await check("overflow", "--device", device);
    expect(json.cases[0]).toMatchObject({ name: "overflow", status: "failed", tensor: "y", error: null });
    expect(json.cases[0].reason).toMatch(/not finite/);
  });
});

it("leaves nothing on the device, whether a case passes, fails or is skipped", async () => {
  await writeOps("leaks/ops");
  await write("leaks/ops/matmul/nudged", matmulCase(1));
  await write("leaks/ops/matmul/no-tolerance", {
    ...matmulCase(),
    "params.json": { op: "matmul", variant: "nn" },
  });
  await write("leaks/models/tiny", await modelCase());
  await write("leaks/adapters/side", await adapterCase());
  const { "model.safetensors": weights, ...rest } = await modelCase();
  await write("leaks/models/short", {
    ...rest,
    "model.safetensors": { ...(weights as TensorFile), "model.norm.weight": f32([1], [1]) },
  });
  const device = new CpuDevice();
  const statuses = new Set<string>();
  for (const location of await findCases(join(root, "leaks"))) {
    const { status } = await checkCase(location, { device, dtype: "f32" });
    statuses.add(status);
    expect(device.memory.liveCount, location.folder.name).toBe(0);
  }
  expect([...statuses].sort()).toEqual(["failed", "passed", "skipped"]);
});

describe("a case that cannot be judged is skipped with its reason", () => {
  const good = matmulCase();
  const { "inputs.safetensors": inputs, "expected.safetensors": expected, "params.json": params } = good;
  const skipped: Record<string, [files: Record<string, unknown>, reason: RegExp]> = {
    "an op that the table does not have": [
      { ...good, "params.json": { op: "convolution", ...tolerance(["y"]) } },
      /^convolution is not covered yet$/,
    ],
    "a kind of reduction that it does not have": [
      { ...good, "params.json": { ...params, op: "reduce", kind: "median", axis: 0 } },
      /^reduce median is not covered yet$/,
    ],
    "params that are not JSON": [{ ...good, "params.json": "{" }, /^malformed: .*not JSON/],
    "a parameter that is missing": [
      { ...good, "params.json": { op: "matmul", ...tolerance(["y"]) } },
      /^malformed: .*variant/,
    ],
    "no inputs": [{ "params.json": params, "expected.safetensors": expected }, /^malformed: .*no such file/],
    "an input that is missing": [
      { ...good, "inputs.safetensors": { a: inputs.a, dy: inputs.dy } },
      /^malformed: .*no "b"/,
    ],
    "no upstream gradient": [
      { ...good, "inputs.safetensors": { a: inputs.a, b: inputs.b } },
      /^malformed: .*no "dy"/,
    ],
    "nothing expected": [{ ...good, "expected.safetensors": {} }, /^malformed: .*empty/],
    "an output that nobody computes": [
      { ...good, "expected.safetensors": { ...expected, z: f32([1], [1]) } },
      /^it expects "z"/,
    ],
    "no tolerance for an output": [
      { ...good, "params.json": { ...params, ...tolerance(["y", "da"]) } },
      /^malformed: .*tolerance for "db"/,
    ],
    "a folder of another kind": [{ "case.json": {}, "expected.safetensors": expected }, /^not an op/],
    "a PEFT adapter of another kind": [
      { "adapter_config.json": { base_model_name_or_path: "m", peft_type: "IA3" }, "case.json": {} },
      /IA3/,
    ],
    "quantized weights of another kind": [
      {
        "config.json": {
          ...MODEL,
          quantization_config: { load_in_4bit: true, bnb_4bit_quant_type: "fp4" },
        },
        "case.json": {},
      },
      /fp4/,
    ],
    "an architecture that is not of the family": [
      { "config.json": { architectures: ["GPT2LMHeadModel"], model_type: "gpt2" }, "case.json": {} },
      /GPT2LMHeadModel/,
    ],
    "an adapter whose configuration lacks fields": [
      { "adapter_config.json": { base_model_name_or_path: "m", method: "ladder" }, "case.json": {} },
      /^malformed: .*num_hidden_layers/,
    ],
    "an adapter without its model": [
      {
        "adapter_config.json": { ...SIDE, base_model_name_or_path: "../nowhere" },
        "case.json": {},
      },
      /^malformed: .*nowhere.*no such file/,
    ],
  };
  for (const [title, [files, reason]] of Object.entries(skipped)) {
    it(title, async () => {
      const folder = title.replaceAll(" ", "-");
      await write(folder, files);
      const { json, exitCode } = await check(folder, "--device", "cpu");
      expect(json).toMatchObject({ passed: 0, failed: 0, skipped: 1 });
      expect(json.cases[0]).toMatchObject({ name: folder, status: "skipped", error: null, tolerance: null });
      expect(json.cases[0].reason).toMatch(reason);
      expect(exitCode).toBe(0);
    });
  }
});

describe("sidenet check, for people", () => {
  it("prints a table by op, and each failed and skipped case with its reason", async () => {
    await write("table/ops/matmul/good", matmulCase());
    await write("table/ops/matmul/bad", matmulCase(1));
    await write("table/ops/convolution/one", { ...matmulCase(), "params.json": { op: "convolution" } });
    const { out, exitCode } = await sidenet("check", join(root, "table"), "--device", "cpu");
    expect(out).toMatch(/^\s+passed\s+failed\s+skipped$/m);
    expect(out).toMatch(/^matmul\s+1\s+1\s+0$/m);
    expect(out).toMatch(/^convolution\s+0\s+0\s+1$/m);
    expect(out).toMatch(/^ {2}ops\/convolution\/one: convolution is not covered yet$/m);
    expect(out).toMatch(/^ {2}ops\/matmul\/bad: y is off by .* \(tolerance 0.00001\)$/m);
    expect(out.trimEnd().endsWith("1 passed, 1 failed, 1 skipped")).toBe(true);
    expect(exitCode).toBe(1);
  });

  it("runs only what --filter names, and a single case by its folder's name", async () => {
    await write("some/ops/matmul/one", matmulCase());
    await write("some/ops/matmul/two", matmulCase());
    const filtered = await check("some", "--device", "cpu", "--filter", "matmul/t");
    expect([...filtered.byName.keys()]).toEqual(["ops/matmul/two"]);
    const single = await check("some/ops/matmul/one", "--device", "cpu");
    expect([...single.byName.keys()]).toEqual(["one"]);
  });

  it("refuses a folder without cases, a filter that names none, and a folder that is not there", async () => {
    await write("empty/notes", { "readme.json": {} });
    await write("one", matmulCase());
    const failures = [
      [await sidenet("check", join(root, "empty"), "--device", "cpu", "--json"), "L-CHECK-EMPTY"],
      [
        await sidenet("check", join(root, "one"), "--filter", "zz", "--device", "cpu", "--json"),
        "L-CHECK-EMPTY",
      ],
      [await sidenet("check", join(root, "nowhere"), "--device", "cpu", "--json"), "L-FILE-MISSING"],
    ] as const;
    for (const [run, code] of failures) {
      expect(run.exitCode).toBe(1);
      expect(run.json()).toMatchObject({ error: { code } });
    }
  });
});
