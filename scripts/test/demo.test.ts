// `npm run demo`: which run it starts, and that its arguments do what the README says, in fewer steps.
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { describe, expect, it } from "vitest";
import { sidenet } from "../../packages/ladder/test/capture.ts";
import { chooseDemo, DEMOS, demoArguments } from "../lib/demo-runs.mjs";
import { ROOT } from "../lib/environment.mjs";
import { temporaryFolder } from "../test-folder.ts";

describe("the demo", () => {
  const folder = temporaryFolder();

  it("is the bundled model's unless --model names another, and takes options of sidenet train", () => {
    expect(chooseDemo([])).toEqual({ name: "tiny-books", rest: [] });
    expect(chooseDemo(["--steps", "3"])).toEqual({ name: "tiny-books", rest: ["--steps", "3"] });
    expect(chooseDemo(["--model", "smollm2", "--json"])).toEqual({ name: "smollm2", rest: ["--json"] });
    expect(chooseDemo(["--json", "--model=smollm2"])).toEqual({ name: "smollm2", rest: ["--json"] });
    expect(() => chooseDemo(["--model", "gpt-5"])).toThrow(/tiny-books and smollm2/);
    expect(() => chooseDemo(["--model"])).toThrow(/tiny-books and smollm2/);
  });

  it("explains itself with --help, and trains nothing: its models, what they run, and where the options are listed", () => {
    for (const args of [["--help"], ["-h"], ["--model", "smollm2", "--help"]]) {
      const { status, stdout, stderr } = spawnSync(process.execPath, ["scripts/demo.mjs", ...args], {
        cwd: ROOT,
        encoding: "utf8",
      });
      expect(status, stderr).toBe(0);
      expect(stdout).toMatch(
        /^usage: npm run demo -- \[--model tiny-books\|smollm2\] \[OPTIONS\]\n\nTrains a Ladder/,
      );
      for (const [name, { what, args: own }] of Object.entries(DEMOS)) {
        expect(stdout).toContain(`${name}: ${what}\n  ${own.join(" ")}\n`);
      }
      expect(stdout).toContain("npx sidenet train --help lists them");
      expect(stdout).not.toContain("Usage: sidenet train");
    }
  });

  it("goes on with a run only where that is asked for", () => {
    expect(demoArguments("tiny-books", "tiny-books")).toContain("--overwrite");
    expect(demoArguments("tiny-books", "tiny-books", ["--resume"])).not.toContain("--overwrite");
  });

  it("trains: the untrained adapter changes nothing, and the held-out loss falls", async () => {
    const rest = ["--steps", "12", "--sample-tokens", "8", "--device", "wasm", "--json", "--output", folder];
    const { exitCode, json, err } = await sidenet(...demoArguments("tiny-books", "tiny-books", rest));
    expect(exitCode, err).toBe(0);
    const summary = json() as Record<string, number> & { peak_bytes_by_category: Record<string, number> };
    expect(summary.initial_eval_loss).toBe(summary.frozen_eval_loss);
    expect(summary.eval_loss).toBeLessThan(summary.frozen_eval_loss - 0.1);
    const parts = Object.values(summary.peak_bytes_by_category).reduce((a, b) => a + b, 0);
    expect(parts).toBe(summary.peak_bytes);
    expect(err).toMatch(/model: 1\.44 M parameters/);
  });

  it("has valid arguments for every model", async () => {
    for (const name of Object.keys(DEMOS)) {
      // A model that is not there is looked for last: before it come the options and the data.
      const missing = join(folder, "missing");
      const { exitCode, json } = await sidenet(
        ...demoArguments(name, missing, ["--json", "--device", "cpu"]),
      );
      expect(exitCode).toBe(1);
      expect(json()).toMatchObject({ error: { code: "L-MODEL-MISSING" } });
    }
  });
});
