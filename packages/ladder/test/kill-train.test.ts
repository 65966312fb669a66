// `sidenet train` as a process that is stopped, killed and resumed. `SIDENET_KILLS=50` sets how often it is killed.
import { readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { readReportData } from "../src/node/report.ts";
import { type BundledCommand, bundleCommand } from "./bundled-command.ts";
import { tinyArguments, traceOf, writeTinyFiles } from "./tiny-run.ts";

/** In CI as many as fit a third of a minute. */
const KILLS = Number(process.env.SIDENET_KILLS ?? 0);
const SECONDS = 20;

let command: BundledCommand;
let settings: string[] = [];
beforeAll(async () => {
  command = await bundleCommand("sidenet-kill");
  const files = await writeTinyFiles(command.folder);
  settings = tinyArguments(files);
  settings.push(
    "--steps",
    "60",
    "--save-every",
    "1",
    "--eval-every",
    "7",
    "--sample-tokens",
    "0",
    "--log-every",
    "1",
  );
});
afterAll(() => command.remove());

const checkpointsIn = async (run: string) =>
  (await readdir(join(run, "checkpoints")).catch(() => [])).filter((name) =>
    /^step-\d+\.safetensors$/.test(name),
  );

describe("a signal", () => {
  it.each([
    ["SIGINT", 130],
    ["SIGTERM", 143],
    ["SIGHUP", 129],
  ] as const)(
    "%s ends the run before its next step, with a checkpoint, and exit code %i",
    async (signal, code) => {
      const output = join(command.folder, signal);
      const long = [...settings, "--output", output, "--steps", "100000", "--save-every", "1000", "--json"];
      let sent = false;
      const { ended } = command.start(["train", ...long], (err, child) => {
        if (!sent && err.includes("step ")) sent = child.kill(signal);
      });
      const end = await ended;
      expect({ code: end.code, signal: end.signal }).toEqual({ code, signal: null });
      expect(end.err).toContain("stopping before the next step");
      const { steps, stop_reason, adapter_step } = JSON.parse(end.out);
      expect({ stop_reason, adapter_step }).toEqual({ stop_reason: "signal", adapter_step: steps });
      expect(await checkpointsIn(output)).toEqual([`step-${String(steps).padStart(6, "0")}.safetensors`]);
      expect(await readdir(output)).toContain("adapter_config.json");
    },
  );

  it("before the first step ends the run with nothing trained", async () => {
    const output = join(command.folder, "early");
    const { ended } = command.start(["train", ...settings, "--output", output], (err, child) => {
      if (err.includes("device: ") && !child.killed) child.kill("SIGINT");
    });
    const { code, err } = await ended;
    // It may be later than the first step by the time that the signal arrives.
    expect(code).toBe(130);
    expect(err).toMatch(/nothing was trained|stopped early|stopping/);
  });

  it("that comes twice ends it at once, and the last checkpoint is good", async () => {
    const output = join(command.folder, "twice");
    const { ended } = command.start(
      ["train", ...settings, "--output", output, "--steps", "100000"],
      (err, child) => {
        if (/step +20\//.test(err)) {
          child.kill("SIGINT");
          child.kill("SIGTERM");
        }
      },
    );
    expect([130, 143]).toContain((await ended).code);
    const resumed = await command.start(["train", "--output", output, "--resume", "--steps", "30", "--json"])
      .ended;
    expect(resumed.code).toBe(0);
    expect(JSON.parse(resumed.out).resumed_from).toBeGreaterThanOrEqual(10);
  });
});

it("a run that is killed at any moment can be read and resumed, and comes to the same end", async () => {
  const whole = join(command.folder, "whole");
  expect((await command.start(["train", ...settings, "--output", whole]).ended).code).toBe(0);
  const expected = await traceOf(whole);
  const output = join(command.folder, "killed");
  const until = performance.now() + SECONDS * 1000;
  const moments = { beforeStep: 0, later: 0 };
  let finished = 0;
  const enough = () => (KILLS > 0 ? moments.beforeStep + moments.later >= KILLS : performance.now() > until);
  while (!enough()) {
    const early = Math.random() < 0.2;
    const { child, ended } = command.start(["train", ...settings, "--output", output, "--resume"], (err) => {
      if (!early && /step +\d+\//.test(err)) setTimeout(() => child.kill("SIGKILL"), Math.random() * 150);
    });
    if (early) setTimeout(() => child.kill("SIGKILL"), Math.random() * 900);
    const end = await ended;
    expect(end.err).not.toMatch(/damaged|bug|\[[A-Z]-/);
    if (end.signal !== "SIGKILL") expect(end.code, end.err).toBe(0);
    else moments[end.err.includes("step ") ? "later" : "beforeStep"]++;
    // Whatever was killed: the folder reads, and holds no more than its checkpoints and one that was being written.
    if ((await readdir(output).catch((): string[] => [])).includes("run.json")) await readReportData(output);
    expect((await checkpointsIn(output)).length).toBeLessThanOrEqual(3);
    if (end.code !== 0) continue;
    finished++;
    expect(await traceOf(output)).toEqual(expected);
    await rm(output, { recursive: true });
  }
  expect((await command.start(["train", ...settings, "--output", output, "--resume"]).ended).code).toBe(0);
  expect(await traceOf(output)).toEqual(expected);
  expect((await readdir(output, { recursive: true })).filter((name) => name.endsWith(".tmp"))).toEqual([]);
  console.log(
    `killed ${moments.beforeStep} times before a step, ${moments.later} later; ${finished} ends between`,
  );
  expect(moments.later).toBeGreaterThan(0);
}, 1_200_000);
