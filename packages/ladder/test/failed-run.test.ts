// A run that fails, or is stopped, leaves a page that says how far it came and why it ended.
import { rmSync } from "node:fs";
import { copyFile, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CpuDevice } from "@sidenet/tensor";
import { afterEach, beforeAll, describe, expect, it, vi } from "vitest";
import { temporaryFolder } from "../../../scripts/test-folder.ts";
import { runSidenet } from "../src/cli/program.ts";
import { type ReportData, readReportData } from "../src/node/report.ts";
import { trainRun } from "../src/node/train-run.ts";
import { sidenet } from "./capture.ts";
import { cpu, tinyArguments, tinyOptions, writeTinyFiles } from "./tiny-run.ts";

const root = temporaryFolder();
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
let base: string[] = [];
beforeAll(async () => {
  files = await writeTinyFiles(root);
  base = tinyArguments(files);
  base.push("--sample-tokens", "0");
});
afterEach(() => void vi.restoreAllMocks());

/** What the page of a folder was made with. */
async function pageOf(folder: string): Promise<ReportData> {
  const html = await readFile(join(folder, "report.html"), "utf8");
  const [, json] = /<script type="application\/json" id="data">(.*?)<\/script>/s.exec(html)!;
  return JSON.parse(json) as ReportData;
}

describe("a run that fails", () => {
  it("leaves a report with its steps and why it ended, and exits 1 with the error itself", async () => {
    const output = join(temporaryFolder(), "out");
    const args = [
      "--output",
      output,
      "--method",
      "full",
      "--learning-rate",
      "1e30",
      "--schedule",
      "constant",
    ];
    const failed = await sidenet("train", ...base.slice(0, 8), ...args, "--warmup-steps", "0", "--json");
    expect(failed.exitCode).toBe(1);
    expect(failed.json()).toMatchObject({ error: { code: "L-DIVERGED" } });
    expect(failed.err).toContain(`report of the run so far: ${join(output, "report.html")}`);
    const { runs } = await pageOf(output);
    expect(runs[0].failure).toMatchObject({ code: "L-DIVERGED", steps: runs[0].steps.length });
    expect(runs[0].failure?.message).toMatch(/^the loss of step \d+ is NaN|^the gradient norm/);
    expect(runs[0].steps.length).toBeGreaterThan(0);
    expect(runs[0].summary).toBeNull();
  });

  it("is forgotten as failed when it goes on, and comes to its end", async () => {
    const options = tinyOptions(files, temporaryFolder());
    const device = new CpuDevice();
    const onCheckpoint = () => {
      device.memory.limitBytes = device.memory.liveBytes + 4096;
    };
    const onFailure = vi.fn();
    await expect(trainRun(device, options, { onCheckpoint, onFailure })).rejects.toThrow("T-OUT-OF-MEMORY");
    const { runs } = await readReportData(options.outputDir);
    expect(runs[0].failure).toMatchObject({ code: "T-OUT-OF-MEMORY", steps: 3 });
    expect(onFailure).toHaveBeenCalledWith(runs[0].failure);
    expect(runs[0].profile?.memory.length).toBeGreaterThan(0); // what was measured before
    await trainRun(cpu(), { ...options, existing: "resume" });
    const [again] = (await readReportData(options.outputDir)).runs;
    expect(again.failure).toBeNull();
    expect(again.summary).toMatchObject({ stop_reason: "done", steps: 8 });
    expect(await readdir(options.outputDir)).not.toContain("failure.json");
  });

  it("before its first step leaves another run's page alone", async () => {
    const output = join(temporaryFolder(), "out");
    expect((await sidenet("train", ...base, "--output", output, "--steps", "1")).exitCode).toBe(0);
    await writeFile(join(output, "report.html"), "mine");
    const refused = await sidenet("train", ...base, "--output", output);
    expect(refused.err).toContain("[L-RUN-EXISTS]");
    expect(refused.err).not.toContain("report of");
    expect(await readFile(join(output, "report.html"), "utf8")).toBe("mine");
  });

  it("that is stopped by a signal has its report as well", async () => {
    const output = join(temporaryFolder(), "out");
    const listener = vi.spyOn(process, "on");
    const run = sidenet("train", ...base, "--output", output, "--steps", "100000", "--save-every", "100000");
    await vi.waitFor(async () => expect(await readdir(output)).toContain("metrics.jsonl"), {
      timeout: 20_000,
    });
    const [, stop] = listener.mock.calls.find(([name]) => name === "SIGINT")!;
    (stop as (signal: string) => void)("SIGINT");
    expect((await run).exitCode).toBe(130);
    expect((await pageOf(output)).runs[0].summary).toMatchObject({ stop_reason: "signal" });
  });
});

describe("a comparison", () => {
  const args = () => ["compare", ...base.slice(0, 8), "--steps", "3", "--methods", "ladder", "full", "lora"];

  it("goes on after a method that diverges, and names it in table, JSON and report", async () => {
    const output = join(temporaryFolder(), "out");
    // Only full tuning is thrown off by such a rate at once: adapters start at zero beside a frozen model.
    const run = await sidenet(...args(), "--output", output, "--learning-rate", "1e25", "--json");
    const { results } = run.json() as { results: { method: string; error?: { code: string } }[] };
    expect(results.map(({ method }) => method)).toEqual(["ladder", "full", "lora"]);
    const failed = results.filter(({ error }) => error !== undefined);
    expect(failed.map(({ method }) => method)).toContain("full");
    expect(run.exitCode).toBe(1);
    expect(run.err).toContain("full: [L-DIVERGED]");
    const { runs } = await pageOf(output);
    expect(runs.map(({ name, failure }) => [name, failure?.code])).toEqual(
      results.map(({ method, error }) => [method, error?.code]),
    );
    const shown = await sidenet(...args(), "--output", output, "--overwrite", "--learning-rate", "1e25");
    expect(shown.out).toMatch(/^full +L-DIVERGED( +-)+$/m);
  });

  it("ends with a failure that is of no method, and has what came before it", async () => {
    const data = join(temporaryFolder(), "data.jsonl");
    const methods = ["--methods", "ladder", "lora", "head", "--steps", "1", "--sample-tokens", "0"];
    /** The data disappears as this method begins. */
    const failingAt = async (method: string) => {
      await copyFile(files.data, data);
      const output = join(temporaryFolder(), method);
      const common = [
        "--model",
        files.model,
        "--device",
        "cpu",
        "--data",
        data,
        "--output",
        output,
        "--json",
      ];
      let out = "";
      const exitCode = await runSidenet(["compare", ...common, ...methods], {
        out: (text) => {
          out += text;
        },
        err: (text) => {
          if (text.trim() === method) rmSync(data);
        },
        interactive: false,
      });
      return { exitCode, ...JSON.parse(out) };
    };
    const second = await failingAt("lora");
    expect(second).toMatchObject({ exitCode: 1, results: [{ method: "ladder" }, { error: {} }] });
    expect(second.results).toHaveLength(2); // no head
    const first = await failingAt("ladder");
    expect(first.error.code).toBe(second.results[1].error.code);
    expect(first.results).toBeUndefined();
  });

  it("that is stopped by a signal has the methods so far", async () => {
    const output = join(temporaryFolder(), "out");
    const listener = vi.spyOn(process, "on");
    const run = sidenet(...args(), "--output", output, "--steps", "100000", "--json");
    await vi.waitFor(async () => expect(await readdir(join(output, "ladder"))).toContain("metrics.jsonl"), {
      timeout: 20_000,
    });
    const [, stop] = listener.mock.calls.findLast(([name]) => name === "SIGINT")!;
    (stop as (signal: string) => void)("SIGINT");
    const { exitCode, json } = await run;
    expect(exitCode).toBe(130);
    expect(json().results).toMatchObject([{ method: "ladder", stop_reason: "signal" }]);
    expect(await readdir(output)).not.toContain("full");
  });
});
