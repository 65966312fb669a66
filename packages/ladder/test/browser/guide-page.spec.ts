// The page of docs/guide-page.md, as it stands there: it trains, and goes on after it was closed or lost its device.
import { readFile, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import type { BytesByCategory } from "@sidenet/tensor";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { build, defaultClientConditions } from "vite";
import { afterAll, beforeAll, expect, it } from "vitest";
import { openChromium } from "../../../../scripts/lib/chromium.mjs";
import { temporaryFolder } from "../../../../scripts/test-folder.ts";

const ROOT = resolve(fileURLToPath(import.meta.url), "../../../../..");
const MODEL = join(ROOT, "packages/ladder/models/tiny-books");
const FILES = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];

/** What the worker of the page has told. */
type Told = Partial<Record<"device" | "reason" | "sample" | "error", string>> & {
  step?: number;
  loss?: number;
  plannedBytes?: number;
  memory?: BytesByCategory;
};

/** Builds the page of the guide, and serves it. */
async function openSite(): Promise<{ url: string; close(): void }> {
  const root = temporaryFolder();
  const guide = await readFile(join(ROOT, "docs/guide-page.md"), "utf8");
  for (const [, name, text] of guide.matchAll(/```ts (\w+\.ts)\n([\s\S]*?)```/g))
    await writeFile(join(root, name), text);
  const html =
    '<input type="file" multiple /><button>Stop</button><script type="module" src="./page.ts"></script>';
  await writeFile(join(root, "index.html"), `<!doctype html>${html}`);
  const source = (name: string) => [`@sidenet/${name}`, join(ROOT, "packages", name, "src/index.ts")];
  await build({
    root,
    configFile: false,
    logLevel: "warn",
    worker: { format: "es" },
    resolve: {
      conditions: ["source", ...defaultClientConditions],
      alias: Object.fromEntries(["tensor", "autograd", "ladder"].map(source)),
    },
    build: {
      minify: false,
      chunkSizeWarningLimit: 4096,
      rolldownOptions: { checks: { pluginTimings: false } }, // the worker is a build of its own, which takes its time
    },
  });
  const server = createServer(async ({ url = "/" }, response) => {
    const path = url === "/" ? "/index.html" : url;
    const text = await readFile(join(root, "dist", path)).catch(() => null);
    const type = path.endsWith(".js") ? "text/javascript" : "text/html";
    response.writeHead(text ? 200 : 404, { "Content-Type": type }).end(text);
  });
  await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`,
    close: () => void server.close(),
  };
}

let browser: Browser;
let site: Awaited<ReturnType<typeof openSite>>;
beforeAll(async () => {
  [browser, site] = await Promise.all([openChromium({ webGpu: false }), openSite()]);
});
afterAll(async () => {
  await browser?.close();
  site?.close();
});

/** Trains beside the model of `files` in a new page until `isEnd` of what its worker tells, and closes the page. */
async function train(
  context: BrowserContext,
  isEnd: (told: Told) => boolean,
  { files = FILES, onTold }: { files?: readonly string[]; onTold?: (told: Told, page: Page) => void } = {},
): Promise<Told[]> {
  const page = await context.newPage();
  const told: Told[] = [];
  const ended = new Promise<void>((resolve, reject) => {
    page.on("pageerror", reject);
    page.on("console", async (message) => {
      if (message.type() !== "log") return; // the browser's own
      const [value] = await Promise.all(message.args().map((arg) => arg.jsonValue()));
      told.push(value);
      onTold?.(value, page);
      if (value.error) reject(new Error(value.error));
      else if (isEnd(value)) resolve();
    });
  });
  await page.goto(site.url);
  await page.locator("input").setInputFiles(files.map((name) => join(MODEL, name)));
  await ended;
  await page.close();
  return told;
}

const isDone = (told: Told) => "adapter" in told;
const lossOf = (told: readonly Told[], step: number) => told.find((one) => one.step === step)?.loss;

it("trains, and a page that is closed goes on from its checkpoint to the same result", async () => {
  const whole = await train(await browser.newContext(), isDone);
  expect(whole.find(({ device }) => device)).toMatchObject({
    reason: "this browser's WebGPU finds no graphics card",
  });
  expect(lossOf(whole, 40)).toBeLessThan(lossOf(whole, 1)! - 0.5);
  const { plannedBytes } = whole.find((told) => "plannedBytes" in told)!;
  const { memory } = whole.findLast((told) => "memory" in told)!;
  expect(Object.values(memory!).reduce((a, b) => a + b)).toBe(plannedBytes);
  expect(whole.map(({ sample }) => sample ?? "").join("")).not.toBe("");
  const context = await browser.newContext();
  const first = await train(context, ({ step }) => step === 25);
  const rest = await train(context, isDone);
  expect(lossOf(first, 20)).toBe(lossOf(whole, 20));
  expect(rest.find(({ step }) => step !== undefined)!.step).toBe(21);
  expect(lossOf(rest, 40)).toBe(lossOf(whole, 40));
});

it("goes on from the checkpoint in a new worker after the device was lost", async () => {
  let lost = false;
  const onTold = ({ step }: Told, page: Page) => {
    if (step !== 21 || lost) return;
    lost = true;
    void page.workers()[0].evaluate('postMessage({ code: "T-DEVICE-LOST" })');
  };
  const told = await train(await browser.newContext(), isDone, { onTold });
  const steps = told.flatMap(({ step }) => step ?? []);
  const again = steps.findIndex((step, i) => step < steps[i - 1]);
  expect(steps.slice(again)).toEqual(Array.from({ length: 20 }, (_, i) => i + 21));
});

it("does not go on from the checkpoint of another model", async () => {
  const context = await browser.newContext();
  await train(context, ({ step }) => step === 21);
  const files = FILES.filter((name) => name !== "tokenizer_config.json");
  const told = await train(context, ({ step }) => step !== undefined, { files });
  expect(told.at(-1)!.step).toBe(1);
});
