// The page of a run in a browser: it draws what the run wrote, in light and in dark, and follows a run that goes on.
import { appendFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openChromium } from "../../../../scripts/lib/chromium.mjs";
import { temporaryFolder } from "../../../../scripts/test-folder.ts";
import { writeReport } from "../../src/node/report.ts";
import { serveReport } from "../../src/node/report-server.ts";
import { trainRun } from "../../src/node/train-run.ts";
import { sidenet } from "../capture.ts";
import { cpu, tinyArguments, tinyOptions, writeTinyFiles } from "../tiny-run.ts";

const root = temporaryFolder();
let run = "";
let files: Awaited<ReturnType<typeof writeTinyFiles>>;
let browser: Awaited<ReturnType<typeof openChromium>>;
beforeAll(async () => {
  files = await writeTinyFiles(root);
  run = join(root, "run");
  await trainRun(cpu(), tinyOptions(files, run, "ladder", { evalEvery: 4, sampleTokens: 4 }));
  browser = await openChromium();
});
afterAll(() => browser?.close());

it.each(["light", "dark"] as const)("draws curves, memory, times and samples in %s", async (colorScheme) => {
  const page = await browser.newPage({ colorScheme });
  const errors: string[] = [];
  page.on("pageerror", (error: Error) => errors.push(error.message));
  await page.goto(pathToFileURL(await writeReport(run)).href);
  await page.locator('body[data-drawn="5"]').waitFor(); // loss, memory, rate, norm, speed
  const titles = await page
    .locator("section")
    .evaluateAll((all) => all.map((one) => one.getAttribute("data-title")));
  for (const title of [
    "Loss",
    "Peak memory",
    "Memory over one step",
    "Time of one step",
    "Before training",
    "After training",
  ])
    expect(titles).toContain(title);
  expect(await page.locator(".tile b").nth(1).textContent()).toBe("8");
  expect(await page.locator(".bars .name").count()).toBeGreaterThan(5);
  // Lines are there: the canvas of the loss is not of one colour.
  const colours = await page.evaluate(`(() => {
    const canvas = document.querySelector('section[data-title="Loss"] canvas');
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
  })()`);
  expect(colours).toBeGreaterThan(10);
  const background = await page.evaluate("getComputedStyle(document.body).backgroundColor");
  expect(background).toBe(colorScheme === "light" ? "rgb(246, 247, 249)" : "rgb(20, 22, 26)");
  expect(errors).toEqual([]);
  await page.close();
});

it("of a run that holds out none has no held-out loss", async () => {
  const none = join(root, "none");
  await trainRun(cpu(), tinyOptions(files, none, "ladder", { heldOut: 0, steps: 3 }));
  const page = await browser.newPage();
  await page.goto(pathToFileURL(await writeReport(none)).href);
  await page.locator('body[data-drawn="5"]').waitFor();
  expect(await page.locator(".tile").first().textContent()).toBe("3steps");
  const text = await page.locator("body").innerText();
  expect(text).not.toMatch(/held.out|NaN/);
  await page.close();
});

it("counts steps in whole numbers, and shows bars on a phone too", async () => {
  const page = await browser.newPage({ viewport: { width: 390, height: 800 } });
  await page.addInitScript(`{
    globalThis.written = [];
    const { fillText } = CanvasRenderingContext2D.prototype;
    CanvasRenderingContext2D.prototype.fillText = function (text, ...place) {
      written.push({ canvas: this.canvas, text });
      return fillText.call(this, text, ...place);
    };
  }`);
  await page.goto(pathToFileURL(await writeReport(run)).href);
  const marks = async (): Promise<string[]> => {
    await page.locator('body[data-drawn="5"]').waitFor();
    await page.waitForFunction("written.length > 0");
    return page.evaluate(`(() => {
      const canvas = document.querySelector('section[data-title="Loss"] canvas');
      return written.filter((one) => one.canvas === canvas).map(({ text }) => text);
    })()`);
  };
  const widths = await page.locator(".bars .track").evaluateAll((all) => all.map((one) => one.clientWidth));
  expect(Math.min(...widths)).toBeGreaterThan(250);
  await page.setViewportSize({ width: 1200, height: 800 });
  await page.reload();
  const steps = (await marks()).filter((text) => !/\.\d{4}$/.test(text)); // losses have four digits
  expect(steps).toContain("8");
  expect(steps.filter((text) => !/^\d+$/.test(text))).toEqual([]);
  await page.close();
});

it("of a comparison has the settings that all methods share once, and those of each beside them", async () => {
  const output = join(root, "compare");
  const options = ["--steps", "2", "--methods", "ladder", "lora+checkpointing", "--output", output];
  const compared = await sidenet("compare", ...tinyArguments(files), ...options);
  expect(compared.exitCode, compared.err).toBe(0);
  const page = await browser.newPage();
  await page.goto(pathToFileURL(join(output, "report.html")).href);
  await page.locator("body[data-drawn]").waitFor();
  const namesIn = (title: string) =>
    page.locator(`section[data-title="${title}"] tr td:first-child`).allTextContents();
  expect(await namesIn("Settings")).toEqual(
    expect.arrayContaining(["data", "steps", "weight-decay", "seed"]),
  );
  const own = ["learning-rate", "method", "output"];
  expect((await namesIn("Settings of ladder")).sort()).toEqual([...own, "reduction"]);
  expect((await namesIn("Settings of lora+checkpointing")).sort()).toEqual([
    "gradient-checkpointing",
    ...own,
  ]);
  await page.close();
});

it("follows a run that goes on, for this machine alone", async () => {
  const server = await serveReport(run, 0);
  try {
    expect(server.url).toMatch(/^http:\/\/127\.0\.0\.1:\d+\/$/);
    const page = await browser.newPage();
    await page.goto(server.url);
    await page.locator('body[data-drawn="5"]').waitFor();
    await appendFile(
      join(run, "metrics.jsonl"),
      `${JSON.stringify({ step: 8, loss: 1, seconds: 1, tokens: 1 })}\n`,
    );
    await page
      .locator(".tile b")
      .nth(1)
      .filter({ hasText: /^9( |$)/ })
      .waitFor();
    await page.close();
  } finally {
    await server.close();
  }
});

it("says how a run ended, when it failed and when nobody knows", async () => {
  const failed = join(root, "failed");
  const files = { model: join(root, "model"), data: join(root, "data.jsonl") };
  const options = tinyOptions(files, failed, "full", {
    learningRate: 1e30,
    schedule: "constant",
    warmupSteps: 0,
  });
  const settings = { steps: options.steps };
  await trainRun(cpu(), { ...options, settings }).catch(() => undefined);
  const page = await browser.newPage();
  const notice = async () => {
    await page.goto(pathToFileURL(await writeReport(failed)).href);
    return await page.locator(".notice").textContent();
  };
  expect(await notice()).toMatch(/^failed after \d+ of 8 steps: \[L-DIVERGED\] the /);
  expect(await page.locator('section[data-title="Run"] td', { hasText: "failed after" }).count()).toBe(1);
  await rm(join(failed, "failure.json"));
  expect(await notice()).toMatch(/^no end is recorded after \d+ of 8 steps/);
  await page.goto(pathToFileURL(await writeReport(run)).href);
  expect(await page.locator(".notice").count()).toBe(0);
  await page.close();
});
