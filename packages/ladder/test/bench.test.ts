import { mkdir, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice, MetaDevice, opNames, rowOf } from "@sidenet/tensor";
import { openNodeWebGpu } from "@sidenet/tensor/node";
import fc from "fast-check";
import { describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { compareReports, keepFaster } from "../src/bench/compare-reports.ts";
import { type KernelBench, measureKernel } from "../src/bench/kernel.ts";
import { calibrate, measureCase, timeOf } from "../src/bench/measure.ts";
import { makeOperand, makeOperands } from "../src/bench/operands.ts";
import { BENCH_MODELS, type Fill } from "../src/bench/shapes.ts";
import { type BenchReport, joinRuns, suiteCases } from "../src/bench/suite.ts";
import { chooseTile } from "../src/bench/tune.ts";
import { sidenet } from "./capture.ts";

const gpuAvailable = process.env.SIDENET_DEVICE !== "cpu";
const folder = temporaryFolder();

const QUICK = ["--time", "5", "--tokens", "16"];
const timed = (times: Record<string, number>, failed: string[] = []) => ({
  results: Object.entries(times).map(([name, minMs]) => ({ name, wall: { minMs } })),
  failures: failed.map((name) => ({ name })),
});

describe("the suite", () => {
  it("has operands that fit their op in every row, for every model and type", () => {
    const device = new MetaDevice();
    const cases = suiteCases({
      models: Object.keys(BENCH_MODELS),
      tokens: [1, 3, 64],
      dtypes: ["f32", "f16"],
      only: [],
      timeMs: 1,
      check: false,
    });
    const ops = new Set(cases.map(({ op }) => op));
    expect(opNames.filter((op) => !rowOf(op).view && !ops.has(op))).toEqual([]);
    for (const item of cases) {
      const run = () =>
        device.scope(() => {
          device.run(item.op, makeOperands(device, item), item.attrs, item.residuals);
        });
      expect(run, item.name).not.toThrow();
    }
    expect(device.memory.liveBytes).toBe(0);
  });
});

describe("the bytes of a row", () => {
  it("are those that its op has to move: read once, written once, and both in place", async () => {
    const [T, d, f, V] = [8, 576, 1536, 49152];
    const blocks = (T * d) / 64;
    const wanted = {
      "add f32": 3 * 4 * T * d,
      "accumulate f32": 3 * 4 * T * d,
      "accumulate f16": 3 * 2 * T * d,
      "adamw f32": 7 * 4 * d * f,
      "adamw8 f32": (12 + 4) * d * f + 4 * 4 * ((d * f) / 256) + 4 * 512,
      "sgd f32": 5 * 4 * d * f,
      "fill f32": 4 * T * d,
      "normal f32": 4 * T * d,
      "cacheWrite f32": 2 * 4 * T * 192,
      "embedding f32": 4 * T + 2 * 4 * T * d,
      "nf4Embedding f32": 4 * T + (T * d) / 2 + blocks + 4 * Math.ceil(blocks / 256) + 4 * 273 + 4 * T * d,
      "selectRows f32": 4 * (T / 2) + 2 * 4 * (T / 2) * d,
      "slice f32": 2 * 4 * (T / 2) * d,
      "gatherAlong f32": 3 * 4 * T * 64,
      "nf4QuantizePart f32": 4 * d * f + (d * f) / 2 + 4 * ((d * f) / 64) + 4 * 16,
      "linear down f16": 4 * T * f + 2 * d * f + 4 * T * d,
      "crossEntropy f32": 4 * T * V + 4 * T + 4 + 2 * 4 * T,
    };
    const device = new MetaDevice();
    const models = ["smollm2-135m"];
    const only = Object.keys(wanted).map((name) => `${name} ${T} `);
    const found: Record<string, number> = {};
    for (const item of suiteCases({
      models,
      tokens: [T],
      dtypes: ["f32", "f16"],
      only,
      timeMs: 1,
      check: false,
    })) {
      const result = await measureCase(device, item, { timeMs: 1, check: false });
      const [name] = item.name.split(` ${T} `);
      if ("bytes" in result) found[name] = result.bytes;
    }
    expect(found).toMatchObject(wanted);
  });
});

describe("makeOperand", () => {
  it("repeats values up to the last element", async () => {
    const device = new CpuDevice();
    const valuesOf = async (fill: Fill, dtype: "u8" | "f32", count: number) => {
      using tensor = makeOperand(device, "x", { shape: [count], dtype, fill }, 0);
      return await tensor.read();
    };
    const bytes = await valuesOf({ kind: "bytes" }, "u8", 150_000);
    expect(bytes.length).toBe(150_000);
    expect(bytes.findIndex((byte, i) => byte !== ((i * 167 + (i >> 8) * 13) & 255))).toBe(-1);
    const period = 65_521;
    const normals = await valuesOf({ kind: "normal" }, "f32", 2 * period + 7);
    expect(normals.findIndex((value, i) => value !== normals[i % period])).toBe(-1);
    expect(new Set(normals.subarray(0, period)).size).toBeGreaterThan(0.99 * period);
  });
});

describe("timing", () => {
  it.runIf(gpuAvailable)("keeps a GPU busy before it counts, and no other device", async () => {
    const device = await openNodeWebGpu({ adapterClass: "discrete" });
    try {
      using x = device.zeros([64]);
      const started = performance.now();
      await timeOf(device, () => device.ops.scale(x, { factor: 1 }).dispose(), 1);
      expect(performance.now() - started).toBeGreaterThanOrEqual(300);
    } finally {
      device.dispose();
    }
    let calls = 0;
    await calibrate(new CpuDevice(), () => calls++);
    expect(calls).toBe(2);
  });
});

describe("chooseTile", () => {
  it("takes the best candidate when it is clearly better than the default, else the default", () => {
    const tried = (...ratios: number[]) => ratios.map((ratio, i) => ({ value: [8, 16][i], ratio }));
    expect(chooseTile(16, tried(0.9, 1))).toBe(8);
    expect(chooseTile(16, tried(0.98, 1))).toBe(16);
    expect(chooseTile(16, tried(1.4, 1))).toBe(16);
  });
});

describe("bench --tune", () => {
  it.runIf(gpuAvailable)("says before it tunes where the table cannot be written", async () => {
    const file = join(folder, "a file");
    await writeFile(file, "");
    await mkdir(join(folder, "cache", "tiles.json"), { recursive: true });
    const places = [join(file, "cache"), join(folder, "cache")];
    for (const place of places) {
      vi.stubEnv("SIDENET_CACHE", place);
      const run = await sidenet("bench", "--tune");
      expect(run.exitCode).toBe(1);
      expect(run.err).toMatch(/\[L-(FILE|OUTPUT)\] .*cache.*a (file|folder)/);
      expect(run.err).not.toContain("rowsBlock");
    }
    vi.unstubAllEnvs();
  });

  it("excludes what chooses rows, and other devices", async () => {
    for (const [args, text] of [
      [["--only", "softmax"], "--tune excludes --only"],
      [["--compare", "old.json"], "--tune excludes --compare"],
      [["--device", "wasm"], "--tune chooses tiles of WebGPU kernels"],
    ] as const) {
      const run = await sidenet("bench", "--tune", ...args);
      expect(run.exitCode, text).not.toBe(0);
      expect(run.err).toContain(text);
    }
  });
});

describe("joinRuns", () => {
  it("puts rows of several runs beside the highest ceilings of them, so that none has another run's share", () => {
    const ceilings = { copyGigabytesPerSecond: 10, multiplyAddGflops: 100, multiplyAddBy: "a loop" };
    const rates = { gflops: 1, gigabytesPerSecond: 5, shareOfCeiling: 7, limit: "multiply-add" };
    const report = { ceilings, results: [rates], failures: [] } as unknown as BenchReport;
    const joined = joinRuns(report, { ...ceilings, copyGigabytesPerSecond: 20, multiplyAddGflops: 50 });
    expect(joined.ceilings).toEqual({ ...ceilings, copyGigabytesPerSecond: 20 });
    expect(joined.results[0]).toMatchObject({ shareOfCeiling: 0.25, limit: "copy" });
  });
});

describe("compareReports", () => {
  it("calls rows slower or faster past the threshold, and tells what only one run has", () => {
    const before = timed({ a: 1, b: 1, c: 1, gone: 2, broken: 3 });
    const rows = compareReports(before, timed({ a: 1.2, b: 0.8, c: 1.1, d: 5 }, ["broken"]), 0.15);
    expect(rows.map(({ name, verdict }) => [name, verdict])).toEqual([
      ["a", "slower"],
      ["b", "faster"],
      ["c", "same"],
      ["d", "new"],
      ["gone", "missing"],
      ["broken", "failed"],
    ]);
    expect(rows[0]).toMatchObject({ beforeMs: 1, afterMs: 1.2, ratio: 1.2 });
    expect(rows[4]).toMatchObject({ beforeMs: 2, afterMs: null, ratio: null });
  });

  it("turns slower into faster when the runs change places, for any times and threshold", () => {
    const ms = fc.double({ min: 1e-3, max: 1e4, noNaN: true });
    const threshold = fc.double({ min: 0.01, max: 3, noNaN: true });
    fc.assert(
      fc.property(ms, ms, threshold, (a, b, share) => {
        fc.pre(Math.abs(Math.abs(Math.log(a / b)) - Math.log1p(share)) > 1e-9);
        const [there] = compareReports(timed({ x: a }), timed({ x: b }), share);
        const [back] = compareReports(timed({ x: b }), timed({ x: a }), share);
        const opposite = { slower: "faster", faster: "slower", same: "same" } as Record<string, string>;
        expect(back.verdict).toBe(opposite[there.verdict]);
        expect(there.verdict === "slower").toBe(b > a * (1 + share));
      }),
    );
  });
});

describe("keepFaster", () => {
  it("takes the lesser time of two runs for each row of the first", () => {
    const first = timed({ a: 3, b: 2, c: 1 }, ["d"]);
    expect(keepFaster(first, timed({ b: 1, a: 4, e: 1 }))).toEqual(timed({ a: 3, b: 1, c: 1 }, ["d"]));
  });
});

describe("sidenet bench", () => {
  it.each(["cpu", "wasm"])(
    "times two rows on %s beside ceilings of the same run, and prints one object",
    async (device) => {
      const args = ["--device", device, "--dtypes", "f32", "--only", "softmax f32", "siluMul f32", ...QUICK];
      const { exitCode, json, err } = await sidenet("bench", ...args, "--json");
      expect(exitCode, err).toBe(0);
      const report = json() as unknown as BenchReport;
      expect(report.device.startsWith(`${device}: `)).toBe(true);
      expect(report.failures).toEqual([]);
      const names = report.results.map(({ name }) => name);
      expect(names).toEqual(
        expect.arrayContaining(["siluMul f32 16 SmolLM2-135M", "softmax f32 16 SmolLM2-135M"]),
      );
      const { copyGigabytesPerSecond, multiplyAddGflops } = report.ceilings;
      for (const row of report.results) {
        expect(row.wall.minMs).toBeGreaterThan(0);
        expect(row.wall.medianMs).toBeGreaterThanOrEqual(row.wall.minMs);
        expect(row.gpuMs).toBeNull();
        expect(row.gigabytesPerSecond).toBeCloseTo(row.bytes / row.wall.medianMs / 1e6, 6);
        const shares = [row.gigabytesPerSecond / copyGigabytesPerSecond, row.gflops / multiplyAddGflops];
        expect(row.shareOfCeiling).toBe(Math.max(...shares));
      }
      const silu = report.results.find(({ op }) => op === "siluMul");
      expect(silu?.bytes).toBe(3 * 16 * 1536 * 4);
    },
  );

  it("writes results and a page, names rows that got slower than an earlier run, and exits with 1", async () => {
    const output = join(folder, "new", "run.json");
    const rows = ["--device", "cpu", "--dtypes", "f32", "--only", "softmax f32", ...QUICK];
    expect((await sidenet("bench", ...rows, "--output", output)).exitCode).toBe(0);
    expect((await readdir(join(folder, "new"))).sort()).toEqual(["run.html", "run.json"]);
    const page = await readFile(join(folder, "new", "run.html"), "utf8");
    expect(page).toContain("softmax f32 16 SmolLM2-135M");
    expect(page).not.toMatch(/(src|href)=/);
    const again = await sidenet("bench", ...rows, "--output", output);
    expect(again).toMatchObject({ exitCode: 1 });
    expect(again.err).toContain("[L-OUTPUT]");

    const run = JSON.parse(await readFile(output, "utf8")) as BenchReport;
    const [first] = run.results;
    const scaled = async (by: number) => {
      const path = join(folder, `scaled-${by}.json`);
      const results = [{ ...first, wall: { ...first.wall, minMs: first.wall.minMs * by } }];
      await writeFile(path, JSON.stringify({ ...run, results }));
      return path;
    };
    const slower = await sidenet("bench", ...rows, "--compare", await scaled(1e-3), "--threshold", "0.5");
    expect(slower.exitCode).toBe(1);
    expect(slower.out).toContain(`slower: ${first.name}`);
    expect(slower.err.split("timed again").length - 1).toBe(2);
    const others = await sidenet("bench", "--device", "cpu", "--only", "siluMul", "--compare", output);
    expect(others).toMatchObject({ exitCode: 1, out: "" });
    expect(others.err).toContain("[L-BENCH]");
    const faster = await sidenet("bench", ...rows, "--compare", await scaled(1e3), "--json");
    expect(faster.exitCode).toBe(0);
    const { comparison } = faster.json() as { comparison: { slower: string[]; rows: { verdict: string }[] } };
    expect(comparison.slower).toEqual([]);
    expect(comparison.rows[0].verdict).toBe("faster");
  });

  it("refuses files that are no results by name, and options that do nothing together", async () => {
    const other = join(folder, "other.json");
    await writeFile(other, '{"device": "cpu", "results": [{"name": "softmax"}]}');
    const broken = join(folder, "broken.json");
    await writeFile(broken, '{"device": ');
    for (const [path, code] of [
      [other, "L-BENCH"],
      [broken, "L-JSON"],
      [join(folder, "none.json"), "L-FILE-MISSING"],
    ]) {
      const { exitCode, json } = await sidenet("bench", "--device", "cpu", "--compare", path, "--json");
      expect(exitCode).toBe(1);
      expect(json()).toMatchObject({ error: { code, message: expect.stringContaining(path) as string } });
    }
    for (const wrong of [
      ["--only", "nosuchop"],
      ["--models", "gpt-9"],
      ["--dtypes", "f64"],
      ["--threshold", "0.2"],
      ["--compare", "x.json", "--threshold", "15"],
      ["--overwrite"],
      ["--output", "results.txt"],
      ["--grid", "4"],
      ["--kernel", "x.wgsl", "--only", "add"],
      ["--kernel", "x.wgsl", "--no-check"],
      ["--kernel", "x.wgsl", "--device", "wasm"],
      ["--kernel", "x.wgsl", "--buffer", "x=ten"],
      ["--kernel", "x.wgsl", "--buffer", "x=4", "--buffer", "x=8"],
      ["--kernel", "x.wgsl", "--param", "n=4", "--param", "n=8"],
      ["--kernel", "x.wgsl", "--grid", "1,2,3,4"],
    ]) {
      const { exitCode, out } = await sidenet("bench", ...wrong);
      expect([wrong, exitCode, out]).toEqual([wrong, 2, ""]);
    }
  });
});

const HALVE = `@group(0) @binding(0) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(1) var<storage, read_write> y: array<vec4<f32>>;
@compute @workgroup_size(64)
fn halve(@builtin(global_invocation_id) id: vec3<u32>) { y[id.x] = x[id.x] * 0.5; }
`;

describe.skipIf(process.env.SIDENET_DEVICE === "cpu")("sidenet bench --kernel", () => {
  it("times a file of one's own, with its bytes", async () => {
    const path = join(folder, "halve.wgsl");
    await writeFile(path, HALVE);
    const options = [
      "--entry",
      "halve",
      "--grid",
      "16",
      "--flops",
      "4096",
      "--buffer",
      "x=4096",
      "--time",
      "5",
    ];
    const args = ["--kernel", path, ...options, "--buffer", "y=4096", "--json"];
    const { exitCode, json, err } = await sidenet("bench", ...args);
    expect(exitCode, err).toBe(0);
    const [row] = (json() as unknown as BenchReport).results;
    expect(row).toMatchObject({
      name: "kernel halve halve",
      bytes: 2 * 4096 * 4,
      flops: 4096,
      dispatches: 1,
    });
    expect(row.wall.minMs).toBeGreaterThan(0);
  });

  it("says why a kernel does not run, and leaves a device that works", async () => {
    const device = await openNodeWebGpu();
    try {
      const buffers = ["x", "y"].map((name) => ({ name, elements: 4096, dtype: "f32" }) as const);
      const right = {
        name: "",
        text: HALVE,
        entry: "halve",
        grid: [16, 1, 1],
        buffers,
        params: {},
        flops: 0,
      } as const;
      const reason = async (name: string, change: Partial<KernelBench>) => {
        const error: unknown = await measureKernel(device, { ...right, name, ...change }, 5).catch((e) => e);
        expect(error).toMatchObject({ code: "L-KERNEL" });
        return (error as Error).message;
      };
      const typo = await reason("typo", { text: HALVE.replace("* 0.5", "* half") });
      expect(typo).toContain("typo.wgsl was refused");
      expect(typo).toContain("unresolved value 'half'");
      expect(await reason("entry", { entry: "main" })).toContain('"main"');
      expect(await reason("unbound", { buffers: [buffers[0]] })).toContain("No tensor was bound to y.");
      const stray = { name: "z", elements: 4, dtype: "f32" } as const;
      expect(await reason("stray", { buffers: [...buffers, stray] })).toBe(
        "[L-KERNEL] stray.wgsl has no binding z; it has x, y.",
      );
      expect(await reason("param", { params: { n: 4 } })).toBe(
        "[L-KERNEL] param.wgsl has no parameter n; it has none.",
      );
      const large = measureKernel(device, { ...right, name: "large", grid: [2 ** 16, 1, 1] }, 5);
      await expect(large).rejects.toThrow("[T-TOO-LARGE] large/halve: 65536 x 1 x 1 workgroups");
      expect((await measureKernel(device, { ...right, name: "right" }, 5)).dispatches).toBe(1);
      expect(device.memory.liveBytes).toBe(0);
    } finally {
      device.dispose();
    }
  });
});
