import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { compareReports } from "../src/bench/compare-reports.ts";
import type { BenchReport } from "../src/bench/suite.ts";
import { sidenet } from "./capture.ts";

let folder = "";
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "sidenet-bench-"));
});
afterAll(() => rm(folder, { recursive: true, force: true }));

const QUICK = ["--time", "5", "--tokens", "16"];
const timed = (times: Record<string, number>, failed: string[] = []) => ({
  results: Object.entries(times).map(([name, minMs]) => ({ name, wall: { minMs } })),
  failures: failed.map((name) => ({ name })),
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
      ["--overwrite"],
      ["--output", "results.txt"],
      ["--grid", "4"],
      ["--kernel", "x.wgsl", "--only", "add"],
      ["--kernel", "x.wgsl", "--no-check"],
      ["--kernel", "x.wgsl", "--device", "wasm"],
      ["--kernel", "x.wgsl", "--buffer", "x=ten"],
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
  const kernel = async (name: string, text: string, ...args: string[]) => {
    const path = join(folder, name);
    await writeFile(path, text);
    return sidenet("bench", "--time", "5", "--kernel", path, ...args, "--json");
  };
  const buffers = ["--buffer", "x=4096", "--buffer", "y=4096"];

  it("times a file of one's own, with its bytes, and says why one does not run", async () => {
    const args = ["--entry", "halve", "--grid", "16", "--flops", "4096", ...buffers];
    const { exitCode, json, err } = await kernel("halve.wgsl", HALVE, ...args);
    expect(exitCode, err).toBe(0);
    const [row] = (json() as unknown as BenchReport).results;
    expect(row).toMatchObject({
      name: "kernel halve halve",
      bytes: 2 * 4096 * 4,
      flops: 4096,
      dispatches: 1,
    });
    expect(row.wall.minMs).toBeGreaterThan(0);

    const refused = async (name: string, text: string, ...rest: string[]) => {
      const result = await kernel(name, text, ...rest);
      expect(result.exitCode).toBe(1);
      return (result.json() as { error: { code: string; message: string } }).error;
    };
    const typo = await refused("typo.wgsl", HALVE.replace("* 0.5", "* half"), ...args);
    expect(typo).toMatchObject({ code: "L-KERNEL", message: expect.stringContaining("half") as string });
    const entry = await refused("entry.wgsl", HALVE, ...buffers);
    expect(entry).toMatchObject({ code: "L-KERNEL", message: expect.stringContaining("main") as string });
    const unbound = await refused("unbound.wgsl", HALVE, "--entry", "halve", "--buffer", "x=64");
    expect(unbound.code).toBe("L-KERNEL");
    const stray = await refused("stray.wgsl", HALVE, ...args, "--buffer", "z=4");
    expect(stray).toEqual({ code: "L-KERNEL", message: "stray.wgsl has no binding z." });
    const param = await refused("param.wgsl", HALVE, ...args, "--param", "n=4");
    expect(param).toEqual({ code: "L-KERNEL", message: "param.wgsl has no parameter n." });
  });
});
